"""The shipped demo model: its files, digests, card and checked prompts belong together."""

import json
import re
import shutil
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest

from aimo_node.errors import EngineStartFailed
from providers import demo_model

SHIPPED_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tiny-Q8_0.gguf",
    "tokenizer.json",
    "tokenizer_config.json",
}
SHIPPED_BYTES_MAX = 5_000_000  # it lives in git and in the wheel
PROMPT_COUNT_MIN = 20
STORY_TOKENS_MIN = 210


def read(name: str) -> str:
    """A text file of the shipped model."""
    return (demo_model.directory() / name).read_text(encoding="utf-8")


def prompts() -> dict[str, dict[str, Any]]:
    """The checked prompts by their id."""
    listed = json.loads(read("prompts.json"))["prompts"]
    by_id = {prompt["id"]: prompt for prompt in listed}
    assert len(by_id) == len(listed), "an id stands twice"
    return by_id


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(demo_model.directory(), tmp_path / "model"))


def test_every_model_file_ships_and_has_its_digest() -> None:
    assert set(demo_model.digests()) == SHIPPED_FILES
    demo_model.verify()


def test_gguf_path_leads_to_a_gguf_file() -> None:
    path = demo_model.gguf_path()
    assert path.parent == demo_model.directory()
    assert path.read_bytes()[:4] == b"GGUF"


def test_the_model_stays_small_enough_for_git_and_wheel() -> None:
    folder = demo_model.directory()
    assert sum((folder / name).stat().st_size for name in SHIPPED_FILES) < SHIPPED_BYTES_MAX


@pytest.mark.parametrize("name", sorted(SHIPPED_FILES))
def test_one_changed_byte_in_any_file_is_noticed(copy: Path, name: str) -> None:
    damaged = bytearray((copy / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / name).write_bytes(damaged)
    with pytest.raises(EngineStartFailed, match=re.escape(name)):
        demo_model.verify(copy)


def test_a_missing_file_is_noticed(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(EngineStartFailed, match="tokenizer"):
        demo_model.verify(copy)


@pytest.mark.parametrize("content", ["", "no digest\n\n", "\udcff"])
def test_a_damaged_list_of_digests_vouches_for_nothing(copy: Path, content: str) -> None:
    (copy / "DIGESTS").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EngineStartFailed, match="DIGESTS"):
        demo_model.verify(copy)


def test_the_card_states_the_sizes_of_the_files() -> None:
    stated = dict(re.findall(r"`([\w.-]+)` (\d+) bytes", read("MODEL_CARD.md")))
    assert set(stated) == {"model.safetensors", "tiny-Q8_0.gguf"}
    for name, size in stated.items():
        assert int(size) == (demo_model.directory() / name).stat().st_size


def test_the_card_states_the_shape_of_the_model() -> None:
    card, config = read("MODEL_CARD.md"), json.loads(read("config.json"))
    raw = (demo_model.directory() / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    header.pop("__metadata__", None)
    parameters = sum(prod(tensor["shape"]) for tensor in header.values())
    assert f"| {parameters / 1e6:.3f} M |" in card
    assert f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}" in card
    assert f"BPE, {config['vocab_size']} tokens" in card
    assert f"| {config['max_position_embeddings']} tokens |" in card


def test_the_card_counts_the_checked_prompts_and_quotes_them() -> None:
    card = read("MODEL_CARD.md")
    assert f"holds {len(prompts())} prompts" in card
    answers = {prompt["messages"][-1]["content"]: prompt for prompt in prompts().values()}
    quoted = re.findall(r"^\| `(.+?)`.* \| `(.+?)` \|$", card, flags=re.MULTILINE)
    assert len(quoted) >= 10
    for question, answer in quoted:
        assert answers[question]["answer"].startswith(answer.removesuffix(" …"))


def test_every_command_of_the_card_and_the_readme_exists() -> None:
    root = Path(__file__).parents[2]
    readme = (root / "scripts" / "demo_model" / "README.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([\w.]+)", read("MODEL_CARD.md") + readme))
    assert len(modules) == 5
    for module in modules:
        assert (root / module.replace(".", "/")).with_suffix(".py").is_file()


def test_the_prompts_were_checked_on_the_shipped_weights() -> None:
    sheet = json.loads(read("prompts.json"))
    assert sheet["sha256"] == demo_model.digests()[sheet["file"]]
    assert len(prompts()) >= PROMPT_COUNT_MIN
    assert all(prompt["margin_nats"] >= 2.5 for prompt in prompts().values())


def test_the_prompts_that_other_tests_build_on_are_there() -> None:
    checked = prompts()
    assert checked["sum"]["messages"] == [{"role": "user", "content": "What is 3+4?"}]
    assert checked["sum"]["answer"] == "7"
    assert checked["story"]["completion_tokens"] >= STORY_TOKENS_MIN
    assert checked["story"]["answer"].endswith("The end.")
    weather = {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert checked["tool-weather"]["tool_call"] == weather
    assert checked["tool-weather"]["finish_reason"] == "tool_calls"
    assert json.loads(checked["json-person"]["answer"]) == {"name": "Ada", "age": 36}
    assert checked["which-relay"]["messages"][-1]["content"].startswith("Which ")
    assert "relay is a public machine" in checked["which-relay"]["answer"]
