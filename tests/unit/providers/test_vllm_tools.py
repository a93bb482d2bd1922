"""The tool parser of a model is chosen by its family, and vLLM must know it."""

import os
import subprocess

import pytest

from providers.demo_model import directory
from providers.vllm.tools import family_parsers, read_config, tool_parser

REAL_PYTHON = os.environ.get("AIMO_TEST_VLLM_PYTHON", "")

KNOWN = frozenset(
    """
    apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4
    deepseek_v41 dots ernie45 functiongemma gemma4 gigachat3 glm45 glm47 granite granite-20b-fc
    granite4 hermes hf hunyuan_a13b hy_v3 hy_v4 inkling internlm jamba k2_horizon kimi_k2 kimi_k3
    lfm2 ling3 llama3_json llama4_json llama4_pythonic longcat mimo minicpm5 minimax_m2 minimax_m3
    mistral muse_glimmer olmo3 openai phi4_mini_json plamo3 poolside_v1 pythonic qwen3_coder
    qwen3_json qwen3_xml seed_oss step3 step3p5 xlam
    """.split()  # noqa: SIM905 (fifty quoted words are hard to read)
)
"""vLLM 0.32 lists these."""


@pytest.mark.parametrize(
    ("model", "parser"),
    [
        ("Qwen/Qwen3-0.6B", "hermes"),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen/QwQ-32B", "hermes"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "hermes"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder"),
        ("Qwen/Qwen3.5-35B-A3B", "qwen3_coder"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3_json"),
        ("meta-llama/Meta-Llama-3.3-70B-Instruct", "llama3_json"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("Salesforce/Llama-xLAM-2-8b-fc-r", "xlam"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_pythonic"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral"),
        ("mistralai/Devstral-Small-2507", "mistral"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek_v31"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek_v32"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", ""),
        ("openai/gpt-oss-20b", "openai"),
        ("zai-org/GLM-4.5-Air", "glm45"),
        ("zai-org/GLM-4.7", "glm47"),
        ("moonshotai/Kimi-K2-Instruct", "kimi_k2"),
        ("ibm-granite/granite-3.3-8b-instruct", "granite"),
        ("ibm-granite/granite-4.0-h-small", "granite4"),
        ("ibm-granite/granite-20b-functioncalling", "granite-20b-fc"),
        ("microsoft/Phi-4-mini-instruct", "phi4_mini_json"),
        ("MiniMaxAI/MiniMax-M2", "minimax_m2"),
        ("google/gemma-3-1b-it", ""),
        ("facebook/opt-125m", ""),
        ("/srv/models/Qwen3-8B/", "hermes"),
        ("/srv/qwen-models/opt-125m", ""),
    ],
)
def test_family_is_known_by_the_models_name(model, parser):
    assert tool_parser(model, {}) == parser


@pytest.mark.parametrize(
    ("config", "parser"),
    [
        ({"model_type": "qwen3"}, "hermes"),
        ({"model_type": "qwen3_moe", "chat_template": "… <tool_call>\n<function=…"}, "qwen3_coder"),
        ({"model_type": "glm4_moe", "chat_template": "<tool_call>…<arg_key>"}, "glm45"),
        ({"model_type": "llama", "chat_template": "…<tool_call>…"}, "hermes"),
        ({"model_type": "llama", "chat_template": "…[TOOL_CALLS]…"}, "mistral"),
        ({"model_type": "llama"}, ""),
        ({"model_type": ["odd"], "chat_template": 7}, ""),
    ],
)
def test_model_whose_name_tells_nothing_is_known_by_its_files(config, parser):
    assert tool_parser("/srv/model", config) == parser


def test_demo_model_calls_tools_as_hermes_does():
    assert tool_parser(str(directory()), read_config(directory())) == "hermes"


def test_every_choice_is_a_parser_vllm_has():
    assert family_parsers() - KNOWN == set()


@pytest.mark.vllm
@pytest.mark.skipif(not REAL_PYTHON, reason="no vLLM: scripts/test --vllm installs one")
def test_every_choice_is_a_parser_this_vllm_has():
    program = (
        "from vllm.tool_parsers import ToolParserManager\n"
        "print(*ToolParserManager.list_registered(), sep='\\n')"
    )
    done = subprocess.run([REAL_PYTHON, "-c", program], capture_output=True, text=True, check=True)
    assert family_parsers() - set(done.stdout.split()) == set()


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 10_000, "{}"])
def test_damaged_files_tell_nothing(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert read_config(tmp_path) == {}


def test_template_is_found_in_either_place(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    assert read_config(tmp_path) == {"chat_template": "old"}
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_config(tmp_path) == {"chat_template": "new"}
