"""What the owner says becomes vLLM's command line; what would break the node's hold is refused."""

import sys
from pathlib import Path

import pytest

from aimo_node.errors import ConfigError
from aimo_node.ports.engine import EngineSettings
from providers.demo_model import directory
from providers.vllm.arguments import NO_DOMAIN, REFUSED, read_plan
from providers.vllm.child import VllmProgram


def plan(*arguments, model="Qwen/Qwen3-0.6B", **more):
    return read_plan(EngineSettings(Path("/state"), model, engine_args=arguments, **more))


def value(made, option):
    return made.arguments[made.arguments.index(option) + 1]


def test_plain_settings_make_a_whole_command_line():
    made = plan()
    assert made.python == Path(sys.executable)
    assert made.name == "Qwen/Qwen3-0.6B"
    assert value(made, "--model") == value(made, "--served-model-name") == "Qwen/Qwen3-0.6B"
    assert value(made, "--max-num-seqs") == "256"
    assert value(made, "--shutdown-timeout") == "10"
    assert value(made, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in made.arguments
    assert "--disable-uvicorn-access-log" in made.arguments


def test_owners_arguments_go_to_vllm_as_they_are():
    given = ["--tensor-parallel-size", "2", "--compilation-config.mode=3", "-tp", "2", "--seed=7"]
    assert list(plan(*given).arguments[-len(given) :]) == given


def test_limit_is_said_by_either_name():
    assert plan(requests_max=8).requests_max == 8
    assert value(plan(requests_max=8), "--max-num-seqs") == "8"
    assert plan("--max-num-seqs", "16").requests_max == 16
    assert plan("--max_num_seqs=16").requests_max == 16
    assert plan("--max-num-seqs", "16", requests_max=16).requests_max == 16
    with pytest.raises(ConfigError, match="say one"):
        plan("--max-num-seqs", "16", requests_max=8)


@pytest.mark.parametrize("option", REFUSED)
def test_option_that_would_break_the_nodes_hold_is_refused(option):
    for written in (option, option.replace("-", "_").replace("__", "--", 1), f"{option}=1"):
        with pytest.raises(ConfigError, match=option):
            plan("--seed", "1", written, "1")


@pytest.mark.parametrize("option", ["--hos", "--por", "--ud", "--mod", "--api-k", "--ssl-key"])
def test_beginning_of_a_refused_option_is_refused_too(option):
    """vLLM would take it for the option."""
    with pytest.raises(ConfigError, match="not yours to set"):
        plan(option, "1")


@pytest.mark.parametrize("option", ["--max-num-seq", "--shutdown-t", "--tool-call"])
def test_beginning_of_an_option_the_node_reads_has_to_be_written_out(option):
    with pytest.raises(ConfigError, match="write"):
        plan(option, "1")


@pytest.mark.parametrize("option", ["--model-impl", "--config-format", "--data-parallel-size"])
def test_options_that_only_begin_alike_pass(option):
    assert option in plan(option, "x").arguments


def test_tool_parser_is_overridden_or_switched_off():
    assert value(plan("--tool-call-parser", "qwen3_xml"), "--tool-call-parser") == "qwen3_xml"
    off = plan("--tool-call-parser=none")
    assert off.tool_parser == ""
    assert "--tool-call-parser" not in off.arguments
    assert "--enable-auto-tool-choice" not in off.arguments
    assert plan(model="facebook/opt-125m").tool_parser == ""


def test_remote_media_are_refused_unless_hosts_are_listed():
    assert value(plan(), "--allowed-media-domains") == NO_DOMAIN
    listed = plan(media_domains=frozenset({"b.example", "a.example"})).arguments
    position = listed.index("--allowed-media-domains")
    assert listed[position + 1 : position + 3] == ("a.example", "b.example")
    assert NO_DOMAIN not in listed


@pytest.mark.parametrize("folder", ["/", "/state", "~", "/state/.."])
def test_media_folder_may_not_hold_the_nodes_own_files(folder):
    with pytest.raises(ConfigError, match="own files"):
        plan("--allowed-local-media-path", folder)
    assert "/srv/pictures" in plan("--allowed-local-media-path", "/srv/pictures").arguments


def test_adapters_need_no_switch_of_their_own():
    assert "--enable-lora" in plan("--lora-modules", "sql=/srv/sql").arguments
    assert "--enable-lora" not in plan().arguments


def test_demo_model_needs_no_name():
    for model in ("", "tiny"):
        made = plan(model=model)
        assert made.name == "tiny"
        assert value(made, "--model") == str(directory())
        assert made.tool_parser == "hermes"


def test_folder_is_named_by_itself_or_by_its_owner(tmp_path):
    folder = tmp_path / "Some-Model"
    folder.mkdir()
    assert plan(model=str(folder)).name == "Some-Model"
    assert plan(model=str(folder)).folder == folder
    assert plan(model=str(folder), served_name="mine").name == "mine"
    assert plan(model="", models={"mine": str(folder)}).name == "mine"
    assert plan().folder is None


@pytest.mark.parametrize("model", ["/no/such/folder", "./here", "~/nothing", "a/b/c"])
def test_missing_folder_is_a_configuration_error(model):
    with pytest.raises(ConfigError, match="there is no such folder"):
        plan(model=model)


def test_server_that_already_runs_is_for_another_engine():
    with pytest.raises(ConfigError, match=r"--engine openai --endpoint http://127\.0\.0\.1"):
        plan(endpoint="http://127.0.0.1:8000")


def test_several_models_need_several_engines():
    with pytest.raises(ConfigError, match=r"\[\[provider\.engine\]\]"):
        plan(model="", models={"a": "x/a", "b": "x/b"})


def test_interpreter_is_found_and_a_link_to_it_kept(tmp_path):
    """A virtual environment is known by the place of the link."""
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert plan("--python", str(link)).python == link
    with pytest.raises(ConfigError, match="no such program"):
        plan("--python", "/no/such/python")


def test_word_that_belongs_to_nothing_is_refused():
    with pytest.raises(ConfigError, match="belongs to no option"):
        plan("Qwen/Qwen3-8B")


def test_images_the_owner_forbids_are_not_offered():
    assert plan().sees_images
    assert not plan("--limit-mm-per-prompt", '{"image": 0}').sees_images
    assert plan("--limit-mm-per-prompt", '{"image": 4}').sees_images
    assert plan("--limit-mm-per-prompt", "nonsense").sees_images
    assert not plan("--language-model-only").sees_images


def test_child_gets_nothing_that_is_the_nodes_own(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/node/packages")
    monkeypatch.setenv("AIMO_MESH_SECRET", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1")
    program = VllmProgram(plan("--python", sys.executable), Path("/s/vllm.sock"), Path("/s/tmp"))
    made = program.environment()
    assert "PYTHONPATH" not in made
    assert not any(name.startswith("AIMO_") for name in made)
    assert made["HF_TOKEN"] == "hf_owner"
    assert made["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    assert made["VLLM_RPC_BASE_PATH"] == made["TMPDIR"] == "/s/tmp"
    assert made["PATH"].startswith(str(Path(sys.executable).parent))
    assert program.command()[-2:] == ["--uds", "/s/vllm.sock"]


def test_owner_may_let_vllm_tell_its_statistics(monkeypatch):
    program = VllmProgram(plan(), Path("/s/vllm.sock"), Path("/s/tmp"))
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    assert program.environment()["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    assert program.environment()["VLLM_NO_USAGE_STATS"] == "0"
