"""Commands that ask an edge, against a scripted one: whole and torn answers, a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from aimo_node.cli.chat import MESSAGES_MAX, Conversation
from aimo_node.cli.edge_client import EdgeClient, EdgeError, read_key
from aimo_node.cli.main import run

PEER = "12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk"
TINY = {"id": "tiny", "context_length": 1024, "state": "stopped", "endpoints": ["chat"]}
MODELS = {"object": "list", "data": [TINY]}
PROVIDER = {
    "id": PEER,
    "models": ["tiny", "large"],
    "model_states": {"tiny": "stopped", "large": "running"},
    "status": "healthy",
    "engines": [{"label": "llama", "state": "running"}, {"label": "gpu", "state": "error"}],
}
PROVIDERS = {"object": "list", "data": [PROVIDER]}


def event(delta: str | None = None, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": delta} if delta else {}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 42}}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = [event("Hel"), b": waiting\n\n", event("lo\x1b[31m"), event(None, "stop"), USAGE, DONE]


class ScriptedEdge(BaseHTTPRequestHandler):
    """Says what the server's `script` says; keeps what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Script)
        if server.status >= 400:
            self.whole(server.status, server.body)
            return
        answers: dict[str, Any] = {"/v1/models": server.models, "/v1/providers": PROVIDERS}
        self.whole(200, json.dumps(answers[self.path]).encode())

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Script)
        body = self.rfile.read(int(self.headers["content-length"]))
        server.asked.append((self.headers.get("authorization"), json.loads(body)))
        if server.status >= 400:
            self.whole(server.status, server.body)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-aimo-provider", PEER)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in server.pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
        server.hold.wait(20)
        with contextlib.suppress(OSError):
            self.wfile.write(b"0\r\n\r\n" if server.ends_well else b"5\r\nda")
        self.close_connection = True

    def whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


class Script(ThreadingHTTPServer):
    """What the edge is to say, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedEdge)
        self.pieces = GOOD
        self.status = 200
        self.body = b""
        self.models: dict[str, Any] = MODELS
        self.ends_well = True
        self.hold = threading.Event()
        self.hold.set()
        self.asked: list[tuple[str | None, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def edge() -> Iterator[Script]:
    with Script() as script:
        thread = threading.Thread(target=script.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield script
        script.hold.set()
        script.shutdown()
        thread.join(5)


def ask(edge: Script) -> list[str]:
    with EdgeClient(edge.url).stream_chat("tiny", [{"role": "user", "content": "hi"}]) as answer:
        return list(answer)


def test_a_stream_gives_text_headers_and_numbers(edge: Script) -> None:
    with EdgeClient(edge.url + "/v1").stream_chat("tiny", [{"role": "user", "content": "é"}]) as a:
        assert a.headers["x-aimo-provider"] == PEER
        assert list(a) == ["Hel", "lo\ufffd[31m"], "control characters must not reach a terminal"
        assert a.completion_tokens == 42
        assert a.finish_reason == "stop"
        assert 0 < a.first_token_seconds <= a.total_seconds
    _, body = edge.asked[0]
    assert body["messages"] == [{"role": "user", "content": "é"}]
    assert body["stream"] is True


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([event("Hel"), b'data: {"error": {"message": "the provider died"}}\n\n'], "provider died"),
        ([event("Hel")], "lost in the middle"),
        ([event("Hel"), DONE], "broke off without a reason"),
        ([b"data: {no json\n\n"], "not an edge"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(
    edge: Script, pieces: list[bytes], words: str
) -> None:
    edge.pieces = pieces
    with pytest.raises(EdgeError, match=words):
        ask(edge)


def test_a_torn_connection_is_an_error(edge: Script) -> None:
    edge.pieces, edge.ends_well = [event("Hel")], False
    with pytest.raises(EdgeError):
        ask(edge)


def test_a_refusal_is_told_in_the_edges_words(edge: Script) -> None:
    edge.status, edge.body = 404, b'{"error": {"message": "nobody serves it\\u001b[2J"}}'
    with pytest.raises(EdgeError, match="nobody serves it\ufffd"):
        ask(edge)
    edge.status, edge.body = 502, b"<html>proxy</html>"
    with pytest.raises(EdgeError, match="502"):
        ask(edge)


def test_what_is_no_edge_is_said_so(edge: Script) -> None:
    edge.models = [1, 2]  # type: ignore[assignment]
    with pytest.raises(EdgeError, match="is not an edge"):
        EdgeClient(edge.url).get("/v1/models")


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://127.0.0.1:99999", "http://[::zz]", "http://a b"]
)
def test_a_url_that_cannot_be_one_is_wrong_usage(url: str) -> None:
    with pytest.raises(click.UsageError):
        EdgeClient(url)


def test_the_key_file_gives_its_first_key(edge: Script, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("# mine\n\nsk-aimo-1\nsk-aimo-2\n")
    key = read_key(str(path))
    with EdgeClient(edge.url, key).stream_chat("tiny", []) as answer:
        list(answer)
    assert edge.asked[0][0] == "Bearer sk-aimo-1"
    path.write_text("# nothing\n")
    with pytest.raises(click.UsageError, match="holds no key"):
        read_key(str(path))
    with pytest.raises(click.UsageError, match=r"missing: No such file or directory$"):
        read_key(str(tmp_path / "missing"))


def test_models_and_peers_are_tables_or_json(
    edge: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "--edge", edge.url]) == 0
    assert capsys.readouterr().out.split() == [
        *("model", "context", "state", "endpoints", "features"),
        *("tiny", "1024", "stopped", "chat"),
    ]
    assert run(["peers", "--edge", edge.url]) == 0
    shown = capsys.readouterr().out
    assert f"{PEER} " in shown, "a peer id must not be cut in a pipe"
    assert "tiny (stopped), large " in shown
    assert "llama, gpu (error)" in shown
    assert run(["models", "--edge", edge.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == MODELS
    assert run(["peers", "--edge", edge.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PROVIDERS


def test_no_models_is_said_in_words(edge: Script, capsys: pytest.CaptureFixture[str]) -> None:
    edge.models = {"object": "list", "data": []}
    assert run(["models", "--edge", edge.url]) == 0
    assert capsys.readouterr() == ("", "no models: no provider has joined yet\n")


def test_without_an_edge_the_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with Script() as gone:
        url = gone.url
    for command in (["models"], ["peers"]):
        assert run([*command, "--edge", url]) == 1
        assert f"no edge answers at {url}" in capsys.readouterr().err


def test_a_conversation_carries_its_history(
    edge: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(EdgeClient(edge.url), "tiny")
    conversation.ask("one")
    conversation.ask("two")
    roles = [message["role"] for message in edge.asked[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    edge.status, edge.body = 503, b"{}"
    with pytest.raises(EdgeError):
        conversation.ask("three")
    assert len(conversation.messages) == 4, "a question without an answer leaves no trace"
    edge.status = 200
    for _ in range(MESSAGES_MAX // 2 + 3):
        conversation.ask("again")
    assert len(conversation.messages) == MESSAGES_MAX


def test_chat_in_a_pipe_answers_line_by_line(edge: Script) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "aimo_node", "chat", "tiny", "--edge", edge.url],
        input="one\n\ntwo\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "Hello\ufffd[31m\n" * 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "utf-8:surrogateescape"])
def test_what_is_no_text_in_the_encoding_of_the_terminal_is_no_crash(
    edge: Script, encoding: str
) -> None:
    """A file in Latin-1 in a pipe, or a terminal in one."""
    result = subprocess.run(
        [sys.executable, "-m", "aimo_node", "chat", "tiny", "--edge", edge.url],
        input=b"caf\xe9?\n",
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (result.returncode, result.stderr) == (0, b"")
    (question,) = edge.asked[0][1]["messages"]
    assert question["content"].startswith("caf")
    assert question["content"].isprintable()


def test_a_host_that_cannot_be_reached_names_the_flag() -> None:
    with pytest.raises(EdgeError, match=r"cannot be asked: [^\[]+; say where it is with --edge"):
        EdgeClient("http://255.255.255.255:1").get("/v1/models")


def test_an_edge_that_wants_a_key_names_the_flag(edge: Script) -> None:
    edge.status, edge.body = 401, b'{"error": {"message": "No API key: send it as a header."}}'
    with pytest.raises(EdgeError, match=r"^the edge wants an API key: .*--key-file"):
        ask(edge)
    with pytest.raises(EdgeError, match=r"^the edge does not know this API key"):
        EdgeClient(edge.url, "sk-wrong").get("/v1/models")


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes stdin the controlling terminal, so that Ctrl-C is a signal, and becomes the command."""


class Terminal:
    """`aimo chat` in a terminal of its own."""

    def __init__(self, url: str) -> None:
        self._main, side = pty.openpty()
        command = [sys.executable, "-m", "aimo_node", "chat", "tiny", "--edge", url]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(side)
        self._seen = ""

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C until `text` comes, as a person would: Python does not hear a signal that
        comes between the prompt and the moment it begins to wait for a key."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.wait_for(text, seconds=1)
                return
        raise AssertionError(f"{text!r} did not come")

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Read until `text` has come; what came before is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            assert time.monotonic() < deadline, f"{text!r} did not come, only {self._seen!r}"
            if select.select([self._main], [], [], 0.1)[0]:
                self._seen += os.read(self._main, 4096).decode()
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._main)


@pytest.fixture
def terminal(edge: Script) -> Iterator[Terminal]:
    terminal = Terminal(edge.url)
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat(edge: Script, terminal: Terminal) -> None:
    edge.hold.clear()
    edge.pieces = [event("a long story")]
    terminal.wait_for("> ")
    terminal.type("tell me\n")
    terminal.wait_for("a long story")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    edge.pieces = GOOD
    edge.hold.set()
    terminal.type("and now\n")
    terminal.wait_for("Hello")
    terminal.wait_for("> ")
    contents = [message["content"] for message in edge.asked[1][1]["messages"]]
    assert contents == ["tell me", "a long story", "and now"]
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


def test_an_error_does_not_end_the_chat(edge: Script, terminal: Terminal) -> None:
    edge.status, edge.body = 503, b'{"error": {"message": "busy, come back"}}'
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("busy, come back")
    terminal.wait_for("> ")
    terminal.interrupt_until("Ctrl-D ends")
    terminal.wait_for("> ")  # a key before the prompt belongs to the terminal's other mode
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0
