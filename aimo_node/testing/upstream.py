"""A stand-in for OpenAI-compatible servers: a plain HTTP server whose answers are scripts.

A script is a function from the request's body to the steps of the answer, so any fault a real
server has shown can be written down in a line; `aimo_node.testing.upstream_scripts` has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import h11
import trio

REQUEST_BYTES_MAX: Final = 32 << 20
SERVED_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/images/generations"}
)


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer in one piece, with its length announced."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """Headers of the event stream that follows, beside the usual ones."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing for so long; `math.inf` never comes back."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Die:
    """The connection is closed in the middle of what was said."""


Step: TypeAlias = bytes | Whole | Head | Pause | Die
"""Bytes are the next piece of an event stream."""

Script: TypeAlias = Callable[[Mapping[str, Any]], Iterable[Step]]


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class StandInUpstream:
    """Serves until its nursery is cancelled; made by `stand_in_upstream`.

    Attributes:
        endpoint: its address, as ``--endpoint`` takes it.
        scripts: for the next requests, one each; then `usual` again.
        models: what ``GET /v1/models`` lists; None answers 404.
        received: every POST, in order.
        lists: how often the list of models was asked for.
        generating: answers on their way right now.
        connections: that are open right now.
    """

    def __init__(self, endpoint: str, usual: Script) -> None:
        self.endpoint = endpoint
        self.lists = 0
        self.usual = usual
        self.scripts: deque[Script] = deque()
        self.models: Script | None = _one_model
        self.received: list[Received] = []
        self.generating = 0
        self.connections = 0

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        """Answer requests until the client goes."""
        self.connections += 1
        parser = h11.Connection(h11.SERVER)
        try:
            with contextlib.suppress(
                trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError
            ):
                while await self._serve_request(stream, parser):
                    parser.start_next_cycle()
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve_request(self, stream: trio.abc.Stream, parser: h11.Connection) -> bool:
        """Answer one request; whether the connection can carry another."""
        received = await _read_request(stream, parser)
        if received is None:
            return False
        script = self._script_for(received)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_for_leaving, stream, parser, scope)
                alive = await self._play(script(received.body), stream, parser)
                nursery.cancel_scope.cancel()
        return not scope.cancelled_caught and alive and parser.our_state is h11.DONE

    def _script_for(self, received: Received) -> Script:
        if received.path == "/v1/models":
            self.lists += 1
            return self.models or _not_found
        if received.path not in SERVED_PATHS:
            return _not_found
        self.received.append(received)
        return self.scripts.popleft() if self.scripts else self.usual

    async def _play(
        self, steps: Iterable[Step], stream: trio.abc.Stream, parser: h11.Connection
    ) -> bool:
        """Carry out a script; False if it closes the connection."""
        self.generating += 1
        more: Mapping[str, str] = {}
        try:
            for step in steps:
                match step:
                    case bytes():
                        await stream.send_all(_head_once(parser, more) + _data(parser, step))
                    case Head():
                        more = step.headers
                    case Whole():
                        await stream.send_all(_whole(parser, step))
                        return True
                    case Pause():
                        await trio.sleep(step.seconds)
                    case Die():
                        return False
            await stream.send_all(
                _head_once(parser, more) + (parser.send(h11.EndOfMessage()) or b"")
            )
        except trio.BrokenResourceError:
            return False
        finally:
            self.generating -= 1
        return True


@contextlib.asynccontextmanager
async def stand_in_upstream(
    usual: Script, socket_path: Path | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[StandInUpstream]:
    """A running stand-in, on a free loopback port or on a Unix socket.

    Args:
        usual: how it answers where no other script waits.
        tls: makes the port an HTTPS one.
    """
    listener: trio.abc.Listener[Any]
    if socket_path is None:
        plain = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = plain.socket.getsockname()[1]
        endpoint = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        listener = trio.SSLListener(plain, tls, https_compatible=True) if tls else plain
    else:
        listener = _unix_listener(socket_path)
        endpoint = f"unix:{socket_path}"
    upstream = StandInUpstream(endpoint, usual)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upstream.serve_connection, [listener])
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()


def _unix_listener(path: Path) -> trio.SocketListener:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(os.fspath(path))
    bound.listen(128)
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


async def _read_request(stream: trio.abc.Stream, parser: h11.Connection) -> Received | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > REQUEST_BYTES_MAX:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            return Received(head.target.decode("ascii"), headers, json.loads(body or b"{}"))
        else:
            return None


async def _watch_for_leaving(
    stream: trio.abc.Stream, parser: h11.Connection, scope: trio.CancelScope
) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while early := await stream.receive_some(65_536):
            parser.receive_data(early)  # the next request, read later
    scope.cancel()


def _head_once(parser: h11.Connection, more: Mapping[str, str]) -> bytes:
    if parser.our_state is not h11.SEND_RESPONSE:
        return b""
    headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
    headers += more.items()
    return parser.send(h11.Response(status_code=200, headers=headers)) or b""


def _data(parser: h11.Connection, data: bytes) -> bytes:
    return parser.send(h11.Data(data=data)) or b""


def _whole(parser: h11.Connection, step: Whole) -> bytes:
    headers = {"content-type": "application/json", "content-length": str(len(step.body))}
    fields = list((headers | dict(step.headers)).items())
    head = parser.send(h11.Response(status_code=step.status, headers=fields)) or b""
    return head + _data(parser, step.body) + (parser.send(h11.EndOfMessage()) or b"")


def _one_model(_body: Mapping[str, Any]) -> Iterable[Step]:
    entry = {"id": "stand-in", "object": "model", "owned_by": "test", "max_model_len": 2048}
    yield Whole(200, json.dumps({"object": "list", "data": [entry]}).encode())


def _not_found(_body: Mapping[str, Any]) -> Iterable[Step]:
    yield Whole(404, b'{"error": {"message": "no such page"}}')
