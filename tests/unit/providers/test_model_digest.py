"""A model digest tells two models apart by everything that makes their answers."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.errors import EngineStartFailed
from providers.demo_model import GGUF_FILE, digests, gguf_path
from providers.file_digests import FileDigests
from providers.model_digest import ModelParts, gguf_parts, model_digest, snapshot_parts

FILES = {
    "config.json": b'{"quantization_config": {"quant_method": "awq", "bits": 4}}',
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}

hashes = st.binary(min_size=32, max_size=32)
parts = st.builds(
    ModelParts,
    weights=st.lists(st.binary(max_size=3) | hashes, max_size=3).map(tuple),
    tokenizer=st.binary(max_size=3) | hashes,
    chat_template=st.binary(max_size=3) | hashes,
    quantization=st.text(max_size=3),
    adapters=st.lists(st.binary(max_size=3) | hashes, max_size=3).map(tuple),
)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "digests.json"


@pytest.fixture
def folder(tmp_path):
    return laid_out(tmp_path / "model", FILES)


def laid_out(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@given(parts, parts)
def test_two_digests_are_equal_only_if_all_parts_are(one, other):
    assert (model_digest(one) == model_digest(other)) == (one == other)


def test_bytes_cannot_wander_from_one_part_to_the_next():
    assert model_digest(ModelParts((b"ab", b"c"))) != model_digest(ModelParts((b"a", b"bc")))
    assert model_digest(ModelParts((b"ab",), b"c")) != model_digest(ModelParts((b"a",), b"bc"))
    assert model_digest(ModelParts((b"a", b"b"))) != model_digest(
        ModelParts((b"a",), adapters=(b"b",))
    )
    assert model_digest(ModelParts(())) != model_digest(ModelParts((b"",)))


def test_encoding_is_the_one_that_is_written_down():
    """Another implementation computes it from the description alone."""

    def number(value):
        return value.to_bytes(8, "big")

    spoken = b"aimo-model-1\0"
    spoken += number(2) + number(1) + b"w" + number(2) + b"ww"
    spoken += number(1) + number(1) + b"t"
    spoken += number(1) + number(0)
    spoken += number(1) + number(3) + b"awq"
    spoken += number(0)
    told = model_digest(ModelParts((b"w", b"ww"), b"t", b"", "awq"))
    assert told == hashlib.sha256(spoken).digest()


@pytest.mark.parametrize("name", FILES)
def test_changed_byte_in_any_part_changes_the_digest(tmp_path, cache, name):
    before = model_digest(snapshot_parts(laid_out(tmp_path / "a", FILES), cache))
    changed = {**FILES, name: FILES[name].replace(b"4", b"8").replace(b"s", b"S") + b" "}
    if name == "config.json":
        changed[name] = FILES[name].replace(b"4", b"8")
    assert model_digest(snapshot_parts(laid_out(tmp_path / "b", changed), cache)) != before


def test_what_does_not_make_answers_does_not_change_the_digest(folder, cache):
    before = snapshot_parts(folder, cache)
    (folder / "README.md").write_text("read me")
    (folder / "config.json").write_text(
        '{"quantization_config": {"bits": 4, "quant_method": "awq"}, "architectures": ["x"]}'
    )
    assert snapshot_parts(folder, cache) == before


def test_order_in_the_directory_does_not_matter(tmp_path, cache):
    one = laid_out(tmp_path / "a", FILES)
    other = laid_out(tmp_path / "b", dict(reversed(FILES.items())))
    assert snapshot_parts(one, cache) == snapshot_parts(other, cache)
    assert snapshot_parts(one, cache).weights == (
        hashlib.sha256(b"first").digest(),
        hashlib.sha256(b"second").digest(),
    )


def test_directory_that_lists_backwards_gives_the_same_parts(folder, cache, monkeypatch):
    """No file system promises an order."""
    expected = snapshot_parts(folder, cache)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as found:
                self.entries = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("os.scandir", Backwards)
    assert snapshot_parts(folder, cache) == expected


def test_names_of_small_files_count_since_they_say_what_they_are_for(tmp_path, cache):
    weights = {"model.safetensors": b"w"}
    one = laid_out(tmp_path / "a", {**weights, "vocab.txt": b"x", "merges.txt": b"y"})
    other = laid_out(tmp_path / "b", {**weights, "vocab.txt": b"y", "merges.txt": b"x"})
    assert snapshot_parts(one, cache).tokenizer != snapshot_parts(other, cache).tokenizer


def test_adapter_makes_another_model(tmp_path, folder, cache):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"one"}
    one = laid_out(tmp_path / "one", adapter)
    two = laid_out(tmp_path / "two", {**adapter, "adapter_model.safetensors": b"two"})
    told = {
        model_digest(snapshot_parts(folder, cache, adapters))
        for adapters in ((), (one,), (two,), (one, two), (two, one))
    }
    assert len(told) == 5
    with pytest.raises(EngineStartFailed, match=r"no LoRA adapter: it has no adapter_config\.json"):
        snapshot_parts(folder, cache, (folder,))


def test_blob_of_a_hub_cache_is_called_by_its_digest_and_not_read(tmp_path, cache):
    """There the content differs from the name on purpose, to show that nobody reads it."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("ab" * 32)).write_bytes(b"forty gigabytes")
    (blobs / ("cd" * 20)).write_bytes(b"{}")  # git's sha1: not what we need
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'ab' * 32}")
    (snapshot / "tokenizer.json").symlink_to(f"../../blobs/{'cd' * 20}")
    told = snapshot_parts(snapshot, cache)
    assert told.weights == (bytes.fromhex("ab" * 32),)
    plain = laid_out(tmp_path / "plain", {"model.safetensors": b"w", "tokenizer.json": b"{}"})
    assert told.tokenizer == snapshot_parts(plain, cache).tokenizer


def test_file_that_happens_to_have_such_a_name_elsewhere_is_read(tmp_path, cache):
    path = tmp_path / ("ab" * 32)
    path.write_bytes(b"x")
    assert FileDigests(cache).digest(path) == hashlib.sha256(b"x").digest()


def test_older_weights_count_only_without_safetensors(tmp_path, cache):
    old = laid_out(tmp_path / "old", {"pytorch_model.bin": b"old"})
    both = laid_out(tmp_path / "both", {"pytorch_model.bin": b"old", "model.safetensors": b"new"})
    assert snapshot_parts(old, cache).weights == (hashlib.sha256(b"old").digest(),)
    assert snapshot_parts(both, cache).weights == (hashlib.sha256(b"new").digest(),)


def test_folder_without_weights_is_refused(tmp_path, cache):
    with pytest.raises(EngineStartFailed, match=r"holds no weights \(\*\.safetensors\)"):
        snapshot_parts(tmp_path, cache)


def test_damaged_configuration_says_nothing_about_quantization(folder, cache):
    for content in (b"", b"[1]", b"{", b"\xff" * 9, b"[" * 100_000):
        (folder / "config.json").write_bytes(content)
        assert snapshot_parts(folder, cache).quantization == ""


def test_digest_of_a_gguf_file_is_remembered(cache):
    (weights,) = gguf_parts(gguf_path(), cache).weights
    assert weights.hex() == digests()[GGUF_FILE]
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: "ab" * 32}))
    assert gguf_parts(gguf_path(), cache) == ModelParts((bytes.fromhex("ab" * 32),))


@pytest.mark.parametrize("content", [b"damaged", b"[1]", b'{"KEY": 5}', b'{"KEY": "xy"}', b"\xff"])
def test_damaged_cache_is_ignored_and_replaced(cache, content):
    gguf_parts(gguf_path(), cache)
    (key,) = json.loads(cache.read_text())
    cache.write_bytes(content.replace(b"KEY", key.encode()))
    assert gguf_parts(gguf_path(), cache).weights[0].hex() == digests()[GGUF_FILE]
    assert json.loads(cache.read_text()) == {key: digests()[GGUF_FILE]}


def test_cache_that_cannot_be_written_is_no_failure(tmp_path):
    missing = tmp_path / "no-such-folder" / "digests.json"
    assert gguf_parts(gguf_path(), missing).weights[0].hex() == digests()[GGUF_FILE]


def test_two_engines_do_not_forget_each_others_digests(tmp_path, cache):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    one, other = FileDigests(cache), FileDigests(cache)
    one.digest(tmp_path / "a")
    other.digest(tmp_path / "b")
    one.save()
    other.save()
    assert len(json.loads(cache.read_text())) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_changed_file_gets_a_new_digest(tmp_path, cache):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    first = gguf_parts(file, cache)
    file.write_bytes(b"three")
    assert gguf_parts(file, cache) != first


def test_every_part_of_a_split_gguf_counts(tmp_path, cache):
    files = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    files[0].write_bytes(b"same")
    files[1].write_bytes(b"one")
    first = gguf_parts(files[0], cache)
    assert len(first.weights) == 2
    files[1].write_bytes(b"other")
    assert gguf_parts(files[0], cache) != first
    files[1].unlink()
    with pytest.raises(EngineStartFailed, match="cannot be read"):
        gguf_parts(files[0], cache)


def test_quantization_may_be_the_owners_choice(folder, cache):
    """An engine told to quantize on loading gives other answers than one that was not."""
    told = snapshot_parts(folder, cache)
    assert told.quantization == '{"quantization_config":{"bits":4,"quant_method":"awq"}}'
    assert model_digest(replace(told, quantization="fp8")) != model_digest(told)
