"""A llama engine that cannot start says so in one sentence, with what to do about it."""

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from aimo_node.domain.ids import ModelName
from aimo_node.errors import ConfigError, EngineStartFailed
from aimo_node.ports.engine import EngineSettings
from providers.demo_model import gguf_path
from providers.engines import llama
from providers.engines.llama import create
from providers.llama.child import explained
from providers.llama.plan import LlamaPlan, check_memory
from tests.integration.llama_parts import children_of, failure_of, running

NOBODY = 65534


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


def demo_with(folder, name, change):
    """A changed copy of the demo model."""
    path = folder / name
    path.write_bytes(change(gguf_path().read_bytes()))
    return path


def engine_for(folder, path, *arguments):
    return create(EngineSettings(folder, model=str(path), engine_args=arguments))


def test_path_where_nothing_is(folder):
    with pytest.raises(ConfigError) as caught:
        create(EngineSettings(folder, model="/no/such.gguf"))
    assert str(caught.value) == (
        "--model /no/such.gguf: there is no such file; the llama engine takes the path of a GGUF "
        "file, or 'tiny' for the demo model"
    )
    assert caught.value.exit_code == 2


def test_folder_instead_of_a_file(folder):
    with pytest.raises(ConfigError, match="is a folder; the llama engine takes the path of one"):
        engine_for(folder, folder)
    (folder / "m-Q4.gguf").touch()
    with pytest.raises(ConfigError) as caught:
        engine_for(folder, folder)
    assert str(caught.value).endswith(f"such as {folder / 'm-Q4.gguf'}")


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_file_without_permission_to_read_it(folder, closed):
    path = demo_with(folder, "secret.gguf", lambda data: data)
    folder.chmod(0o711 if closed == "file" else 0)
    path.chmod(0 if closed == "file" else 0o644)
    try:
        with somebody_else(), pytest.raises(ConfigError) as caught:
            engine_for(folder, path)
    finally:
        folder.chmod(0o700)
    assert str(caught.value) == (
        f"--model {path} cannot be read: Permission denied; let the user of this node read it"
    )


@contextlib.contextmanager
def somebody_else():
    """Root may read everything, so be somebody else for the length of the block."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_file_that_is_no_model(folder):
    bad = folder / "bad.gguf"
    bad.write_bytes(b"hello")
    sentence = await failure_of(engine_for(folder, bad))
    assert sentence == f"{bad} is not a usable GGUF file: it does not start with GGUF"


@pytest.mark.parametrize("size", [100, 5_000, 200_000, 700_000, 1_400_000])
async def test_truncated_file(folder, size):
    bad = demo_with(folder, "cut.gguf", lambda data: data[:size])
    sentence = await failure_of(engine_for(folder, bad))
    assert str(bad) in sentence
    assert "download it again" in sentence
    assert "\n" not in sentence
    assert not children_of(os.getpid(), folder)


async def test_damaged_numbers_are_refused_each_time_and_looked_for_only_until_none_are_found(
    folder,
):
    """Not a number in a block of weights would make every answer nonsense."""
    bad = demo_with(
        folder, "bad.gguf", lambda data: data[:900_000] + b"\xff" * 400 + data[900_400:]
    )
    for _ in range(2):
        sentence = await failure_of(engine_for(folder, bad))
        assert "has invalid data; the file is damaged: download it again" in sentence
    good = engine_for(folder, gguf_path())
    async with running(good):
        assert not good.plan.is_checked
    again = engine_for(folder, gguf_path())
    async with running(again):
        assert again.plan.is_checked
    (folder / "llama-checked.json").write_text('{"damaged": ')
    third = engine_for(folder, gguf_path())
    async with running(third):
        assert not third.plan.is_checked


async def test_model_of_an_unknown_kind(folder):
    odd = demo_with(folder, "odd.gguf", lambda data: data.replace(b"llama", b"lxxma"))
    sentence = await failure_of(engine_for(folder, odd))
    assert "unknown model architecture: 'lxxma'" in sentence
    assert "does not know such a model: update xllamacpp" in sentence


async def test_ranking_model(folder):
    ranker = demo_with(folder, "ranker.gguf", with_pooling(4))
    sentence = await failure_of(engine_for(folder, ranker))
    assert sentence.startswith(f"{ranker} is a model that ranks documents; the llama engine serves")


def with_pooling(number):
    """Says so in the metadata of a model."""

    def change(data):
        magic, version, tensors, entries = struct.unpack_from("<4sIQQ", data)
        key = b"llama.pooling_type"
        entry = struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, number)
        head = struct.pack("<4sIQQ", magic, version, tensors, entries + 1)
        return head + entry + data[24:]

    return change


async def test_split_model_with_a_part_missing(folder):
    first = folder / "m-00001-of-00002.gguf"
    shutil.copy(gguf_path(), first)
    sentence = await failure_of(engine_for(folder, first))
    assert sentence.startswith("the weights cannot be read: ")
    assert "m-00002-of-00002.gguf" in sentence


async def test_model_larger_than_memory_is_refused_before_it_is_read(folder):
    """The file is sparse: all but its head is a hole, which would take hours to read."""
    huge = demo_with(folder, "huge-Q8_0.gguf", lambda data: data)
    os.truncate(huge, 4 * psutil.virtual_memory().total)
    sentence = await failure_of(engine_for(folder, huge, "--gpu-layers", "0"))
    needed = huge.stat().st_size / 1e9
    assert sentence.startswith(f"huge-Q8_0 needs about {needed:.1f} GB of memory, ")
    assert sentence.endswith(" GB are free: take a smaller quantization of it")


def test_memory_is_compared_with_all_files_of_a_model(folder):
    for number in (1, 2):
        (folder / f"m-0000{number}-of-00002.gguf").write_bytes(bytes(1000))
    plan = LlamaPlan(folder / "m-00001-of-00002.gguf", ModelName("m"), folder)
    check_memory(plan, free_bytes=2000)
    with pytest.raises(EngineStartFailed):
        check_memory(plan, free_bytes=1999)


async def test_missing_package(folder, monkeypatch):
    monkeypatch.setattr(llama, "PACKAGE", "xllamacpp_is_not_here")
    with pytest.raises(EngineStartFailed, match="pip install xllamacpp_is_not_here") as caught:
        await engine_for(folder, "tiny").run(lambda: None, lambda line: None)
    assert caught.value.not_installed


@pytest.mark.parametrize(
    ("printed", "fix"),
    [
        ("failed to allocate buffer of size 9999", "there is not enough memory"),
        ("llama_kv_cache: failed to allocate buffer for kv cache", "smaller --engine-args"),
        ("unknown pre-tokenizer type: 'new'", "update xllamacpp"),
    ],
)
def test_what_llama_cpp_prints_is_given_with_a_fix(folder, printed, fix):
    plan = LlamaPlan(folder / "m.gguf", ModelName("m"), folder)
    sentence = explained(plan, ["something first", printed], "ended", folder / "llama.log")
    assert sentence.startswith(f"llama.cpp cannot serve {folder / 'm.gguf'}: {printed}; ")
    assert fix in sentence


def test_death_without_a_word_is_put_down_to_the_memory(folder):
    plan = LlamaPlan(folder / "m.gguf", ModelName("m"), folder)
    sentence = explained(plan, [], "was killed by SIGKILL", folder / "llama.log")
    assert "was killed by SIGKILL; perhaps the system ran out of memory" in sentence


@pytest.mark.parametrize(
    ("size", "exit_code", "words"),
    [(None, 2, "there is no such file"), (700_000, 4, "download it again")],
    ids=["missing", "truncated"],
)
def test_program_ends_with_that_sentence_and_a_code(folder, size, exit_code, words):
    model = folder / "m.gguf"
    if size:
        model.write_bytes(gguf_path().read_bytes()[:size])
    command = [sys.executable, "-m", "aimo_node", "provider", "--engine", "llama"]
    command += ["--model", str(model), "--state", str(folder / "state"), "--open"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == exit_code
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("aimo: ")
    assert words in last
    assert "Traceback" not in ended.stderr
