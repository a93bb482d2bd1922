"""The scripts of the demo model: data that a seed fixes, an export that bytes fix, true answers."""

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from providers import demo_model
from scripts.demo_model import chat_template, generate
from scripts.demo_model.dialogue import SHARES, TASKS
from scripts.demo_model.needs import require

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS_MAX = 100

# What the generator wrote when the shipped weights were released: another hash is other training
# data, and the card would no longer say where the weights come from.
SEED_HASHES = {
    0: "b100d6f76fc29512c39d3b64d2c2a3359e97ea64fa769ebac275c2d57239d02f",
    7: "e4d93c3beecd48d428944f148f91905ee92ab13cd19607a0b42c6ac9b1e76a1d",
    42: "62122784ac6371440a271d75ae8b82a5c719e2bae3e6c019400e97f7059aa553",
}
KIND_HASHES = {
    "arithmetic": "09130b328879cc5e9b94f4981d25c268657013981de117405ea76674a1cdd111",
    "fact": "ce26f3c9a24d8f4143694067d5aee11dde1f4993323318e3d76904bbdd0ba0e2",
    "small_talk": "aedd84139662e311dd6c0e5009f0d69a27074f50b1ec1a1fa3d4d9953c1104df",
    "project": "33fff193dd6b26a8d82333b53c3006cb8c57ab29f03eef25a5441d2dc48f566a",
    "echo": "12a36637fcaa787eaf8bc18bafb653dd04e9b8bddbd48cee5deb904eacd3f392",
    "count": "05e4eca685b770ace86ba5e32a4a58196cb57219a9fadfca5049d63b3d194c49",
    "spell": "897a2387753ebdc5e45b21ab850b6ef9c03a151d5e7c1360a623e48ba3058773",
    "json": "7dbc07db4d6d2a3ac62b2e1e07e9438988e3b42e4b2484a35b310cbbf602ed27",
    "introduce": "6a19b46a301daf2d4362a557bba11a32306de1830c0f6945eca25a9f999adfef",
    "recall": "477188dd1d39cf193f2ca21961f56834d53167ec411fdf7f9e7245fc0f3eb09c",
    "story": "182b9a953b5b559d1837b72d8a5fddad0eba08bb0ceea90efcd7b3b791346378",
    "unknown": "f3c11b9a0644a325bbc57c8bf6c39818c1bf94b7a9e960801e5fdb54fe88691a",
    "tool": "ec30b3646bcb69609cf41df42c7ecf7ab5217e3d95a34b3697467dbc5a6e8188",
}


def dialogues_hash(seed: int, count: int, turns: int, kind: str | None = None) -> str:
    """The sha256 of dialogues as the command prints them."""
    made = generate.dialogues(random.Random(seed), count, turns, kind)
    lines = "".join(f"{generate.as_json(dialogue, messages)}\n" for dialogue, messages in made)
    return hashlib.sha256(lines.encode()).hexdigest()


async def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run one of the scripts as its README says, and return what it printed."""
    command = [sys.executable, "-m", f"scripts.demo_model.{module}", *arguments]
    with trio.fail_after(COMMAND_SECONDS_MAX):
        return await trio.run_process(
            command, cwd=ROOT, check=False, capture_stdout=True, capture_stderr=True
        )


@pytest.mark.parametrize("seed", SEED_HASHES)
def test_a_seed_gives_the_same_dialogues_as_ever(seed: int) -> None:
    assert dialogues_hash(seed, count=300, turns=6) == SEED_HASHES[seed]


@pytest.mark.parametrize("kind", [*TASKS, "tool"])
def test_a_seed_gives_the_same_turns_of_each_kind_as_ever(kind: str) -> None:
    assert dialogues_hash(5, count=200, turns=3, kind=kind) == KIND_HASHES[kind]


def test_another_seed_gives_other_dialogues() -> None:
    assert dialogues_hash(1, count=5, turns=3) != dialogues_hash(2, count=5, turns=3)


def test_every_task_has_a_share() -> None:
    assert set(SHARES) == set(TASKS)


def test_the_shipped_chat_template_is_the_one_the_model_was_trained_with() -> None:
    shipped = (demo_model.directory() / "chat_template.jinja").read_text(encoding="utf-8")
    assert shipped == chat_template.TEMPLATE


async def test_the_command_prints_what_the_functions_make() -> None:
    done = await run_module("generate", "--seed", "7", "--count", "300", "--turns", "6", "--jsonl")
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).hexdigest() == SEED_HASHES[7]


def test_a_missing_package_is_named_with_the_line_that_mends_it() -> None:
    with pytest.raises(SystemExit, match="pip install no_such_package") as left:
        require("json", "no_such_package")
    assert "json" not in str(left.value)


def test_present_packages_are_no_reason_to_leave() -> None:
    require("json", "random")


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("numpy", "gguf")),
    reason="the export script also needs numpy and gguf",
)
async def test_the_shipped_weights_export_to_the_shipped_gguf(tmp_path: Path) -> None:
    """Says that the GGUF file is nothing but the safetensors in another form."""
    target = tmp_path / "again.gguf"
    done = await run_module("export", str(demo_model.directory()), str(target))
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == demo_model.gguf_path().read_bytes()


async def test_the_shipped_model_gives_every_answer_that_is_written_down() -> None:
    folder = str(demo_model.directory())
    done = await run_module("check_prompts", folder, "--rounds", "1")
    assert done.returncode == 0, done.stdout.decode()
    assert done.stdout.endswith(b"0 differences\n")


async def test_an_answer_that_is_not_the_models_is_noticed(tmp_path: Path) -> None:
    shipped = demo_model.directory()
    (tmp_path / "tiny-Q8_0.gguf").write_bytes((shipped / "tiny-Q8_0.gguf").read_bytes())
    sheet = json.loads((shipped / "prompts.json").read_text(encoding="utf-8"))
    sheet["prompts"] = [prompt for prompt in sheet["prompts"] if prompt["id"] == "animal"]
    sheet["prompts"][0]["answer"] = "A cow says woof."
    (tmp_path / "prompts.json").write_text(json.dumps(sheet), encoding="utf-8")
    done = await run_module("check_prompts", str(tmp_path), "--rounds", "1")
    assert done.returncode == 1
    assert b"animal: answer is 'A cow says moo.' and not 'A cow says woof.'" in done.stdout
