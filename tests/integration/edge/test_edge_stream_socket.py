"""Several requests at a time over one WebSocket, with an unmodified WebSocket client."""

from __future__ import annotations

import hashlib
import json
from contextlib import asynccontextmanager

import pytest
import trio
import websockets.exceptions
from websockets.trio.client import connect

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.edge.settings import EdgeSettings
from aimo_node.errors import NetworkError, Overloaded, StreamInterrupted
from aimo_node.testing.fake_door import FAKE_PEER, FakeDoor, Pause, words

from .conftest import start_edge

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
STOP = Finish(FinishReason.STOP, Usage(1, 2))


class Socket:
    """A connection that speaks in objects."""

    def __init__(self, connection) -> None:
        self.connection = connection

    async def send(self, **message) -> None:
        await self.connection.send(json.dumps(message))

    async def ask(self, name, *, stream: bool = True, **fields) -> None:
        body = {**CHAT, "stream": stream, **fields}
        await self.send(type="request", id=name, endpoint="/v1/chat/completions", body=body)

    async def receive(self):
        with trio.fail_after(10):
            text = await self.connection.recv()
        assert isinstance(text, str)
        return json.loads(text)

    async def receive_to_end(self, name):
        """The messages of one request up to its end; no other may come between."""
        messages = []
        while True:
            messages.append(await self.receive())
            assert messages[-1]["id"] == name
            if messages[-1]["type"] != "chunk":
                return messages


@asynccontextmanager
async def open_socket(edge, **headers):
    async with connect(
        edge.url.replace("http", "ws") + "/v1/stream", additional_headers=headers, proxy=None
    ) as connection:
        yield Socket(connection)


@pytest.fixture
async def socket(edge):
    async with open_socket(edge) as socket:
        yield socket


def said(messages) -> str:
    choices = [choice for message in messages for choice in message["data"]["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def route(number: int) -> dict:
    """What the last message of the request says of where it went."""
    request_id = number.to_bytes(16, "big").hex()
    return {"request_id": request_id, "provider": FAKE_PEER, "path": "direct", "attempts": 1}


async def test_request_is_answered_in_chunks_and_done(socket):
    await socket.ask("a")
    *chunks, end = await socket.receive_to_end("a")
    assert end == {"type": "done", "id": "a", "aimo": route(1)}
    assert said(chunks) == "Hello there"
    assert chunks[0]["data"]["object"] == "chat.completion.chunk"
    assert chunks[-1]["data"]["choices"][0]["finish_reason"] == "stop"


async def test_whole_answer_is_one_chunk_and_done(socket):
    await socket.ask("a", stream=False)
    chunk, end = await socket.receive_to_end("a")
    assert chunk["data"]["choices"][0]["message"]["content"] == "Hello there"
    assert end == {"type": "done", "id": "a", "aimo": route(1)}


async def test_ping_is_answered(socket):
    await socket.send(type="ping")
    assert await socket.receive() == {"type": "pong"}


async def test_several_requests_run_at_a_time(edge, socket):
    pauses = {name: Pause() for name in ("a", "b", "c")}
    edge.door.script = lambda request: [
        pauses[json.loads(request.body)["user"]],
        *words(f"for {json.loads(request.body)['user']}"),
    ]
    for name, pause in pauses.items():
        await socket.ask(name, user=name)
        await pause.reached.wait()
    for name in ("c", "a", "b"):
        pauses[name].over.set()
        *chunks, end = await socket.receive_to_end(name)
        assert said(chunks) == f"for {name}"
        assert end["type"] == "done"


async def test_cancel_stops_one_request_and_not_the_others(edge, socket):
    kept = Pause()
    scripts = iter([[["x"], Pause()], [["y"], kept, [STOP]]])
    edge.door.script = lambda _: next(scripts)
    await socket.ask(1)
    assert (await socket.receive())["id"] == 1
    await socket.ask(2)
    assert (await socket.receive())["id"] == 2
    await socket.send(type="cancel", id=1)
    assert await socket.receive() == {"type": "cancelled", "id": 1, "aimo": route(1)}
    with trio.fail_after(5):
        await edge.door.answers[0].cancelled.wait()
    assert not edge.door.answers[1].cancelled.is_set()
    kept.over.set()
    assert (await socket.receive_to_end(2))[-1] == {"type": "done", "id": 2, "aimo": route(2)}


async def test_an_error_says_who_was_asked_and_a_refusal_does_not(edge, socket):
    edge.door.unreachable = NetworkError("nobody answers there")
    await socket.ask("a")
    end = (await socket.receive_to_end("a"))[-1]
    assert (end["type"], end["aimo"]) == ("error", route(1) | {"path": "none"})
    edge.door.unreachable, edge.door.refusal = None, Overloaded("full")
    await socket.ask("b")
    assert "aimo" not in (await socket.receive_to_end("b"))[-1]


async def test_cancel_of_an_ended_request_is_no_news(socket):
    await socket.ask("a")
    await socket.receive_to_end("a")
    await socket.send(type="cancel", id="a")
    await socket.send(type="ping")
    assert await socket.receive() == {"type": "pong"}


async def test_id_may_be_used_again_after_the_end(socket):
    for _ in range(3):
        await socket.ask("a")
        assert (await socket.receive_to_end("a"))[-1]["type"] == "done"


async def test_id_of_a_running_request_is_refused_and_that_one_goes_on(edge, socket):
    pause = Pause()
    edge.door.script = [pause, *words("Hi")]
    await socket.ask("a")
    await pause.reached.wait()
    await socket.ask("a")
    refusal = await socket.receive()
    assert (refusal["type"], refusal["id"], refusal["error"]["param"]) == ("error", None, "id")
    pause.over.set()
    assert (await socket.receive_to_end("a"))[-1]["type"] == "done"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([Overloaded("Busy.")], "overloaded"),
        ([["x"], StreamInterrupted("Lost.")], "stream_interrupted"),
        ([[JsonDelta(b"nonsense")]], "engine_failed"),
        ([["x"]], "internal_error"),
    ],
)
async def test_failure_is_one_error_with_the_id(edge, socket, script, code, stream):
    edge.door.script = script
    await socket.ask("a", stream=stream)
    end = (await socket.receive_to_end("a"))[-1]
    assert (end["type"], end["error"]["code"]) == ("error", code)
    assert edge.door.answers[0].cancelled.is_set()
    edge.door.script = words("Hi")
    await socket.ask("a")
    assert (await socket.receive_to_end("a"))[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/chat/completions", "body": {"model": "m"}}, "body.messages"),
        ({"endpoint": "/etc/passwd", "body": CHAT}, "endpoint"),
        ({"endpoint": "/v1/chat/completions"}, "body"),
        ({"body": CHAT}, "endpoint"),
    ],
)
async def test_invalid_request_is_an_error_with_its_id(socket, fields, param):
    await socket.send(type="request", id="a", **fields)
    end = await socket.receive()
    assert (end["type"], end["id"], end["error"]["param"]) == ("error", "a", param)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"type":"request"}',
        '{"type":"request","id":null,"endpoint":"","body":{}}',
        '{"type":"request","id":{},"endpoint":"","body":{}}',
        json.dumps({"type": "request", "id": "x" * 129, "endpoint": "", "body": {}}),
        '{"type":"dance","id":"a"}',
        '{"type":"cancel"}',
        '{"a":' * 100_000,
        b"\x00\xff",
    ],
)
async def test_unreadable_message_is_an_error_without_id_and_the_socket_lives(socket, text):
    await socket.connection.send(text)
    answer = await socket.receive()
    assert (answer["type"], answer["id"]) == ("error", None)
    await socket.ask("a")
    assert (await socket.receive_to_end("a"))[-1]["type"] == "done"


async def test_requests_at_a_time_are_bounded(nursery):
    edge = await start_edge(nursery, FakeDoor([Pause()]), EdgeSettings(socket_requests_max=2))
    async with open_socket(edge) as socket:
        for name in ("a", "b", "c"):
            await socket.ask(name)
        refusal = await socket.receive()
        assert (refusal["id"], refusal["error"]["code"]) == ("c", "rate_limit_exceeded")
        await socket.send(type="cancel", id="a")
        assert (await socket.receive())["type"] == "cancelled"
        await socket.ask("c")
        await socket.send(type="cancel", id="c")
        end = await socket.receive()
    assert (end["type"], end["id"]) == ("cancelled", "c")
    nursery.cancel_scope.cancel()


async def test_message_size_is_bounded(nursery):
    edge = await start_edge(nursery, FakeDoor(), EdgeSettings(socket_message_bytes_max=1000))
    async with open_socket(edge) as socket:
        await socket.ask("a", user="u" * 200, metadata={"x": "y" * 1000})
        answer = await socket.receive()
        assert (answer["id"], answer["error"]["code"]) == (None, "payload_too_large")
        await socket.ask("a")
        assert (await socket.receive_to_end("a"))[-1]["type"] == "done"
    nursery.cancel_scope.cancel()


async def test_consumer_that_leaves_stops_all_its_requests(edge):
    edge.door.script = [["x"], Pause()]
    async with open_socket(edge) as socket:
        for name in range(3):
            await socket.ask(name)
            await socket.receive()
    with trio.fail_after(5):
        for answer in edge.door.answers:
            await answer.cancelled.wait()
    assert len(edge.door.answers) == 3


async def test_idle_socket_is_closed_and_a_busy_one_is_not(nursery):
    pause = Pause()
    settings = EdgeSettings(socket_idle_seconds=0.05)
    edge = await start_edge(nursery, FakeDoor([pause, [STOP]]), settings)
    async with open_socket(edge) as socket:
        await socket.ask("a")
        await pause.reached.wait()
        await trio.sleep(0.2)
        pause.over.set()
        assert (await socket.receive_to_end("a"))[-1]["type"] == "done"
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            await socket.receive()
    nursery.cancel_scope.cancel()


async def test_drain_lets_requests_finish_then_says_goodbye(edge, socket):
    pause = Pause()
    edge.door.script = [["x"], pause, [STOP]]
    await socket.ask("a")
    await socket.receive()
    await pause.reached.wait()
    edge.drain.set()
    await socket.ask("b")
    refusal = await socket.receive()
    assert (refusal["id"], refusal["error"]["code"]) == ("b", "draining")
    pause.over.set()
    assert (await socket.receive_to_end("a"))[-1]["type"] == "done"
    with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
        await socket.receive()
    assert caught.value.rcvd.code == 1001
    with trio.fail_after(5):
        await edge.stopped.wait()


async def test_end_of_grace_is_an_error_for_each_request(edge, socket):
    edge.door.script = [["x"], Pause()]
    for name in ("a", "b"):
        await socket.ask(name)
        await socket.receive()
    edge.drain.set()
    ends = [await socket.receive(), await socket.receive()]
    assert {end["id"] for end in ends} == {"a", "b"}
    assert {end["error"]["code"] for end in ends} == {"draining"}
    with trio.fail_after(5):
        await edge.stopped.wait()


async def test_foreign_origin_is_refused_before_the_handshake(edge):
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        async with open_socket(edge, Origin="http://evil.example"):
            pass
    assert caught.value.response.status_code == 403
    assert json.loads(caught.value.response.body)["error"]["code"] == "permission_denied"


async def test_own_origin_is_let_in(edge):
    async with open_socket(edge, Origin=edge.url) as socket:
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"


async def test_socket_needs_a_key_once_there_are_keys(nursery):
    key = "sk-0123456789abcdef"
    settings = EdgeSettings(api_keys=frozenset({hashlib.sha256(key.encode()).digest()}))
    edge = await start_edge(nursery, FakeDoor(), settings)
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        async with open_socket(edge):
            pass
    assert caught.value.response.status_code == 401
    async with open_socket(edge, Authorization=f"Bearer {key}") as socket:
        await socket.ask("a")
        assert (await socket.receive_to_end("a"))[-1]["type"] == "done"
    assert len(edge.door.requests[0].consumer) == 16
    nursery.cancel_scope.cancel()
