"""The small parts: admission, slots, logs, sockets, endpoints, keys, GGUF heads."""

import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing

from aimo_node.errors import ConfigError, Draining, EngineFailed, EngineStartFailed, Overloaded
from providers.admission import Admission
from providers.children import socket_folder
from providers.children.bounded_log import BoundedLog
from providers.children.socket_folder import claim_socket, remove_socket
from providers.demo_model import gguf_path
from providers.http.body import CHUNK_LINE_BYTES_MAX, ChunkedBody, SizedBody
from providers.llama.cache_slots import CacheSlots
from providers.llama.gguf_head import read_head
from providers.upstreams.endpoints import read_key, split_endpoint


def test_place_is_given_back_after_a_failure():
    admission = Admission(1)
    with pytest.raises(ValueError, match="x"), admission.request():
        raise ValueError("x")
    with admission.request():
        assert admission.load().load == 1.0
        with pytest.raises(Overloaded), admission.request():
            pass
    assert admission.running == 0


async def test_every_waiting_drain_returns_when_the_last_request_ends():
    admission = Admission(2)
    async with trio.open_nursery() as nursery:
        with admission.request():
            nursery.start_soon(admission.drain)
            nursery.start_soon(admission.drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Draining), admission.request():
                pass


def test_slot_is_reused_only_for_the_salt_that_filled_it():
    slots = CacheSlots(2)
    with slots.take("alice") as first:
        assert not first.reuse
    with slots.take("alice") as again:
        assert (again.number, again.reuse) == (first.number, True)
    with slots.take("bob") as other:
        assert other.number != first.number
        assert not other.reuse
        with slots.take("carol") as third:
            assert (third.number, third.reuse) == (first.number, False)
    with slots.take("alice") as back:
        assert not back.reuse


def test_forgotten_slots_are_not_reused():
    slots = CacheSlots(1)
    with slots.take("alice"):
        pass
    slots.forget()
    with slots.take("alice") as slot:
        assert not slot.reuse


def test_log_is_bounded_and_private(tmp_path):
    log = BoundedLog(tmp_path / "x.log", bytes_max=1000)
    for number in range(500):
        log.write(f"line {number}\n".encode())
    log.write(b"y" * 5000)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "x.log").stat().st_mode & 0o077 == 0


def test_stale_socket_is_removed_and_a_live_one_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(socket_folder, "SOCKET_PATH_BYTES_MAX", 107)
    path = Path(os.path.relpath(tmp_path)) / "e.sock"  # keeps it short enough to bind
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen()
        assert socket_folder.is_listening(path)
    assert path.exists()
    assert not socket_folder.is_listening(path)


async def test_deep_state_folder_gets_a_short_private_socket_folder(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    path = await claim_socket(deep, "llama")
    try:
        assert len(os.fsencode(path)) <= socket_folder.SOCKET_PATH_BYTES_MAX
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert await claim_socket(deep, "llama") == path
        path.write_text("stale")
        assert await claim_socket(deep, "llama") == path
        assert not path.exists()
    finally:
        remove_socket(path)
    assert not path.parent.exists()


async def test_a_deep_temporary_folder_is_passed_over(tmp_path, monkeypatch):
    """Whoever binds a path that is too long binds another one, and nobody finds it."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    path = await claim_socket(deep, "llama")
    try:
        assert path.parent.parent == Path(socket_folder.SHORTEST)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    finally:
        remove_socket(path)
    assert not path.parent.exists()


async def test_a_path_that_is_too_long_everywhere_is_said(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(socket_folder, "SHORTEST", str(deep))
    with pytest.raises(EngineStartFailed, match="set TMPDIR to a shorter folder"):
        await claim_socket(deep, "llama")


async def test_socket_folder_open_to_others_is_refused(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    path = await claim_socket(deep, "llama")
    path.parent.chmod(0o755)
    try:
        with pytest.raises(EngineStartFailed, match="not a private folder"):
            await claim_socket(deep, "llama")
    finally:
        path.parent.rmdir()


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("http://127.0.0.1:8000", ("http://127.0.0.1:8000", "/v1")),
        ("http://127.0.0.1:8000/", ("http://127.0.0.1:8000", "/v1")),
        ("https://api.example.com/v1/", ("https://api.example.com", "/v1")),
        ("https://example.com/api/openai/v1", ("https://example.com", "/api/openai/v1")),
        ("http://[::1]:8000", ("http://[::1]:8000", "/v1")),
        ("unix:/run/x.sock", ("unix:/run/x.sock", "/v1")),
        ("unix:///run/x.sock", ("unix:/run/x.sock", "/v1")),
    ],
)
def test_endpoint_is_split(endpoint, parts):
    assert split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://user:secret@host",
        "http://host/v1?key=secret",
        "http://host:99999",
        "http://[::1",
        "unix:relative",
    ],
)
def test_useless_endpoint_is_refused_without_quoting_secrets(endpoint):
    with pytest.raises(ConfigError, match="--endpoint") as caught:
        split_endpoint(endpoint)
    assert "secret" not in str(caught.value)


def test_key_is_read_without_its_line_end(tmp_path):
    file = tmp_path / "key"
    file.write_text("sk-abc\n")
    assert read_key(file) == "sk-abc"
    assert read_key(None) == ""


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nkeys\n", b"a key", "schlüssel".encode()])
def test_key_file_without_one_key_is_refused(tmp_path, content):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="one key") as caught:
        read_key(file)
    assert "two" not in str(caught.value)


def test_missing_key_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere cannot be read"):
        read_key(tmp_path / "nowhere")


def test_demo_model_says_its_context():
    assert read_head(gguf_path()).context_tokens == 1024


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 99, 1, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + b"\x63\0\0\0",
    ],
)
def test_what_is_no_gguf_file_is_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(EngineStartFailed, match=r"bad\.gguf is not a usable GGUF file"):
        read_head(file)


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"1_0\r\n",
        b"+5\r\n",
        b"fffffffff\r\n",
        b"3\r\nabcd\r\n",
        b"x" * CHUNK_LINE_BYTES_MAX,
    ],
)
def test_malformed_chunks_are_refused(data):
    with pytest.raises(EngineFailed, match="not valid HTTP"):
        ChunkedBody().feed(data)


def test_body_cut_short_is_a_failure():
    for body, data in ((ChunkedBody(), b"5\r\nab"), (SizedBody(5), b"ab")):
        assert body.feed(data) == b"ab"
        with pytest.raises(EngineFailed, match="in the middle"):
            body.close()


def test_sized_body_takes_no_more_than_its_length():
    body = SizedBody(3)
    assert body.feed(b"abcdef") == b"abc"
    assert body.done
