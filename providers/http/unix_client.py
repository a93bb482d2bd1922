"""HTTP/1.1 over a Unix socket, one connection per request: the hot path from an engine's process.

Half the cost per token of a general client. No keep-alive: a connection here costs 50 µs, and
llama.cpp blocks a thread for every idle one.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import h11
import trio

from aimo_node.errors import EngineFailed
from providers.http.body import BodyDecoder, ChunkedBody, SizedBody, UnsizedBody
from providers.http.socket_pump import RECEIVE_BYTES, socket_pump
from providers.http.upstream import ANSWER_BYTES_MAX, Feed, Headers, Unreachable

HEAD_BYTES_MAX: Final = 16_384

CONNECT_SECONDS: Final = 2.0
"""How long to wait for room in the queue of those who want to connect; then another provider."""

CONNECT_RETRY_SECONDS: Final = 0.005


class UnixUpstream:
    """A server on a Unix socket. Any number of tasks may ask at the same time.

    Args:
        socket: path of its socket, short enough for the system.
        api_key: sent as bearer token.
    """

    def __init__(self, socket: Path, api_key: str = "") -> None:
        self._socket = socket
        self._headers = [
            ("host", "engine"),
            ("connection", "close"),
            ("accept-encoding", "identity"),
        ]
        if api_key:
            self._headers.append(("authorization", f"Bearer {api_key}"))

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator[UnixReply]:
        """See `Upstream`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)  # noqa: FBT003 (the standard library's own)
            await _connect(connection, str(self._socket))
            yield await _exchange_heads(connection, self._head(method, path, body, headers), body)

    async def aclose(self) -> None:
        """Nothing is kept open."""

    def _head(self, method: str, path: str, body: bytes, own: Headers) -> h11.Request:
        names = {name for name, _ in own}
        headers = [header for header in self._headers if header[0] not in names]
        headers += [*own, ("content-length", str(len(body)))]
        if body and "content-type" not in names:
            headers.append(("content-type", "application/json"))
        return h11.Request(method=method, target=path, headers=headers)


class UnixReply:
    """See `Reply`."""

    def __init__(
        self, connection: socket.socket, head: h11.Response, body: BodyDecoder, early: bytes
    ) -> None:
        self.status = head.status_code
        self.headers = {
            name.decode("ascii"): value.decode("latin-1") for name, value in head.headers
        }
        self._connection = connection
        self._body = body
        self._early = early

    async def receive(self) -> bytes:
        """See `Reply`."""
        body = self._body
        if self._early:
            data, self._early = body.feed(self._early), b""
            if data:
                return data
        while not body.done:
            received = await _receive(self._connection)
            if not received:
                body.close()
            elif data := body.feed(received):
                return data
        return b""

    async def pour(self, feed: Feed) -> bool:
        """See `Reply`."""
        body, going = self._body, True

        def take(received: bytes) -> bool:
            nonlocal going
            if not received:
                body.close()
            elif data := body.feed(received):
                going = feed(data)
            return going and not body.done

        if self._early:
            early, self._early = self._early, b""
            take(early)
        if going and not body.done:
            try:
                await socket_pump().pour(self._connection, take)
            except OSError as error:
                raise EngineFailed("the connection to the engine was lost") from error
        return not going


async def _connect(connection: socket.socket, path: str) -> None:
    """A server that is slow to accept is waited for; nothing has been sent yet.

    Raises:
        Unreachable: nobody listens, or nobody accepts.
    """
    deadline = trio.current_time() + CONNECT_SECONDS
    while True:
        try:
            connection.connect(path)
        except BlockingIOError as error:
            # So Linux says that the queue of those who want in is full; llama.cpp's holds five.
            if trio.current_time() >= deadline:
                raise Unreachable("the engine accepts no connections") from error
        except OSError as error:
            raise Unreachable("nobody listens on the engine's socket", str(error)) from error
        else:
            return
        await trio.sleep(CONNECT_RETRY_SECONDS)


async def _send(connection: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        await trio.lowlevel.wait_writable(connection.fileno())
        left = left[connection.send(left) :]


async def _receive(connection: socket.socket) -> bytes:
    """What has arrived; empty when the peer has closed.

    Raises:
        EngineFailed: the connection was lost.
    """
    while True:
        await trio.lowlevel.wait_readable(connection.fileno())
        try:
            return connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise EngineFailed("the connection to the engine was lost") from error


async def _exchange_heads(
    connection: socket.socket, request: h11.Request, body: bytes
) -> UnixReply:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    head = parser.send(request) or b""
    # A server that refuses early may have answered before it has read everything.
    with contextlib.suppress(ConnectionError):
        await _send(connection, head + body)
    try:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await _receive(connection))
            elif isinstance(event, h11.Response):
                early, _ = parser.trailing_data
                return UnixReply(connection, event, _decoder(event), early)
            elif not isinstance(event, h11.InformationalResponse):
                raise EngineFailed("the engine closed the connection without an answer")
    except h11.RemoteProtocolError as error:
        raise EngineFailed("the engine closed the connection without an answer") from error


def _decoder(head: h11.Response) -> BodyDecoder:
    headers = dict(head.headers)
    if coding := headers.get(b"transfer-encoding"):
        if coding.lower() != b"chunked":
            raise EngineFailed("the engine's answer has an unknown transfer encoding")
        return ChunkedBody()
    length = headers.get(b"content-length")
    if length is None:
        return UnsizedBody()
    if int(length) > ANSWER_BYTES_MAX:
        raise EngineFailed(f"the engine's answer is longer than {ANSWER_BYTES_MAX} bytes")
    return SizedBody(int(length))
