"""WebSockets on the HTTP port: messages, closing, limits, bytes that are not frames."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.protocol.ws_stream import ASGIWebsocketState
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import LocalProtocolError

from aimo_node.edge.serving.limits import HttpLimits
from aimo_node.edge.serving.state import ServingState
from aimo_node.edge.serving.websocket_stream import WebSocketStream
from tests.integration.probe_app import (
    AT_ONCE_SECONDS,
    PATIENCE_SECONDS,
    Client,
    Probe,
    Served,
    quickest,
    serving,
    status_of,
)

pytestmark = pytest.mark.alone


class Socket:
    """A WebSocket client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.wire = WSConnection(ConnectionType.CLIENT)

    async def send(self, event: Event) -> None:
        """Sends an event of wsproto's."""
        await self.client.send(self.wire.send(event))

    async def receive(self) -> Event:
        """The next event; pings are answered and not returned."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                for event in self.wire.events():
                    if isinstance(event, Ping):
                        with contextlib.suppress(LocalProtocolError):  # closing already
                            await self.send(event.response())
                    else:
                        return event
                data = await self.client.stream.receive_some(65_536)
                self.wire.receive_data(data or None)

    async def receive_text(self) -> str:
        """The next whole text message."""
        text = ""
        while True:
            event = await self.receive()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return text


@contextlib.asynccontextmanager
async def connected(served: Served, path: str = "/ws") -> AsyncIterator[Socket]:
    """A client whose handshake is done."""
    async with await served.connect() as client:
        websocket = Socket(client)
        await websocket.send(Request(host="probe", target=path, extensions=[PerMessageDeflate()]))
        accepted = await websocket.receive()
        assert isinstance(accepted, AcceptConnection), accepted
        assert accepted.extensions == []
        yield websocket


async def test_text_and_bytes_come_back() -> None:
    async with serving() as served, connected(served) as websocket:
        for number in range(20):
            await websocket.send(TextMessage(data=f"häh {number}"))
            assert await websocket.receive_text() == f"häh {number}"
        await websocket.send(BytesMessage(data=b"\x00\xff"))
        event = await websocket.receive()
        assert isinstance(event, BytesMessage)
        assert event.data == b"\x00\xff"


async def test_message_in_fragments_is_one_message() -> None:
    async with serving() as served, connected(served) as websocket:
        await websocket.send(TextMessage(data="one ", message_finished=False))
        await websocket.send(Ping(b"between"))
        await websocket.send(TextMessage(data="two"))
        pong = await websocket.receive()
        assert isinstance(pong, Pong)
        assert pong.payload == b"between"
        assert await websocket.receive_text() == "one two"


async def test_server_closes_with_code_and_reason() -> None:
    async with serving() as served, connected(served) as websocket:
        await websocket.send(TextMessage(data="close"))
        event = await websocket.receive()
        assert isinstance(event, CloseConnection)
        assert (event.code, event.reason) == (4001, "bye")
        await websocket.send(event.response())
        assert await websocket.client.read_to_end() == b""


@pytest.mark.parametrize("how", ["close", "vanish"])
async def test_handler_ends_when_the_consumer_leaves(how: str) -> None:
    async def measure() -> float:
        async with serving() as served, connected(served) as websocket:
            await served.probe.wait_for("ws-begun")
            left_at = trio.current_time()
            if how == "close":
                await websocket.send(CloseConnection(code=1000))
                assert isinstance(await websocket.receive(), CloseConnection)
                assert await websocket.client.read_to_end() == b""
            else:
                websocket.client.reset()
            await served.probe.wait_for("ws-ended")
            return served.probe.times["ws-ended"] - left_at

    assert await quickest(measure) < AT_ONCE_SECONDS


@pytest.mark.parametrize("is_whole", [True, False])
async def test_message_over_the_limit_closes_the_websocket(is_whole: bool) -> None:
    """Hypercorn goes on with it, and keeps what it has of the message."""
    limits = HttpLimits(websocket_message_bytes_max=10_000)
    async with serving(limits) as served, connected(served) as websocket:
        await websocket.send(TextMessage(data="x" * 10_000))
        assert await websocket.receive_text() == "x" * 10_000
        for _ in range(1 if is_whole else 4):
            data = "x" * (10_001 if is_whole else 4000)
            await websocket.send(TextMessage(data=data, message_finished=is_whole))
        event = await websocket.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1009
        await served.probe.wait_for("ws-ended")
        assert await websocket.client.read_to_end() == b""


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        (b"\x81\x02hi", 1002),
        (b"\xf1\x82\0\0\0\0hi", 1002),
        (b"\x83\x82\0\0\0\0hi", 1002),
        (b"\x80\x82\0\0\0\0hi", 1002),
        (b"\x01\x82\0\0\0\0hi\x82\x82\0\0\0\0hi", 1002),
        (b"\x89\xfe\x01\0\0\0\0\0", 1002),
        (b"\x88\x82\0\0\0\0\x03\xe7", 1002),
    ],
    ids=[
        "not utf-8",
        "unmasked",
        "reserved bits",
        "unknown kind",
        "continues nothing",
        "interrupted",
        "long ping",
        "close code",
    ],
)
async def test_bytes_that_are_no_frames_are_answered_with_a_code(frame: bytes, code: int) -> None:
    async with serving() as served, connected(served) as websocket:
        await websocket.client.send(frame)
        event = await websocket.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        await served.probe.wait_for("ws-ended")
        assert await websocket.client.read_to_end() == b""


async def test_unfinished_messages_together_are_bounded() -> None:
    limits = HttpLimits(bodies_bytes_max=150_000)
    async with serving(limits) as served, connected(served) as first, connected(served) as second:
        await first.send(TextMessage(data="x" * 100_000, message_finished=False))
        await trio.testing.wait_all_tasks_blocked()
        await second.send(TextMessage(data="x" * 100_000, message_finished=False))
        event = await second.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1013
        await first.send(TextMessage(data="y"))
        assert await first.receive_text() == "x" * 100_000 + "y"


async def test_silent_websocket_is_closed_and_one_that_answers_pings_is_not() -> None:
    limits = HttpLimits(websocket_silence_seconds=0.6)
    async with serving(limits) as served, connected(served) as lively, connected(served) as silent:
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(silent.client.read_to_end)
            with trio.move_on_after(1.5):
                await lively.receive()
        await served.probe.wait_for("ws-ended")
        assert served.probe.times["ws-ended"] - began_at < 1.5
        await lively.send(TextMessage(data="still here"))
        assert await lively.receive_text() == "still here"


async def test_reading_stops_while_the_handler_does_not_receive() -> None:
    """And yet the handler ends when the consumer leaves."""
    async with serving() as served, connected(served) as websocket:
        await websocket.send(TextMessage(data="flood"))
        await served.probe.wait_for("ws-sent")
        sent = 0
        with trio.move_on_after(1):
            while sent < 30_000_000:
                await websocket.send(BytesMessage(data=b"x" * 65_000))
                sent += 65_000
        assert sent < 30_000_000
        await websocket.client.stream.aclose()
        await served.probe.wait_for("ws-ended")


async def test_sending_on_a_closing_websocket_lets_others_run() -> None:
    """A producer that never waits would otherwise never learn that the server has said goodbye."""
    owner: Any = SimpleNamespace(
        is_tls=False, client=None, server=None, transport=SimpleNamespace(write=None)
    )
    state = ServingState(Probe().app, HttpLimits(), {})
    stream = WebSocketStream(owner, state, trio.lowlevel.checkpoint)
    stream.state = ASGIWebsocketState.CONNECTED
    stream.connection = Connection(ConnectionType.SERVER)
    assert stream.goodbye() == b"\x88\x02\x03\xf4"
    assert stream.goodbye() == b""
    with trio.testing.assert_checkpoints():
        await stream.app_send({"type": "websocket.send", "text": "more"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"sec-websocket-version: 12\r\nsec-websocket-key: YWFhYWFhYWFhYWFhYWFhYQ==\r\n", 400),
        (b"sec-websocket-version: 13\r\n", 400),
    ],
)
async def test_bad_handshake_is_refused_and_closed(headers: bytes, status: int) -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(
            b"GET /ws HTTP/1.1\r\nhost: p\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            + headers
            + b"\r\n"
        )
        assert status_of(await client.read_to_end()) == status


async def test_unknown_websocket_is_rejected_with_an_http_answer() -> None:
    async with serving() as served, await served.connect() as client:
        websocket = Socket(client)
        await websocket.send(Request(host="probe", target="/nowhere"))
        event = await websocket.receive()
        assert isinstance(event, RejectConnection)
        assert event.status_code == 404
