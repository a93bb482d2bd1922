"""HTTP/1.1 over a Unix socket, one connection per request: the hot path from an engine's process.

Half the cost per token of a general client. No keep-alive: a connection here costs 50 µs, and
llama.cpp blocks a thread for every idle one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import h11
import trio

from aimo_node.errors import EngineFailed
from providers.http_body import BodyDecoder, ChunkedBody, SizedBody, UnsizedBody
from providers.upstream import ANSWER_BYTES_MAX, Headers

RECEIVE_BYTES: Final = 65_536
HEAD_BYTES_MAX: Final = 16_384


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
        try:
            stream = await trio.open_unix_socket(str(self._socket))
        except (OSError, RuntimeError) as error:
            raise EngineFailed("nobody listens on the engine's socket") from error
        async with stream:
            parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
            head = self._head(method, path, body, headers)
            yield await _exchange_heads(stream, parser, head, body)

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
        self, stream: trio.SocketStream, head: h11.Response, body: BodyDecoder, early: bytes
    ) -> None:
        self.status = head.status_code
        self.headers = {
            name.decode("ascii"): value.decode("latin-1") for name, value in head.headers
        }
        self._stream = stream
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
            try:
                received = await self._stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise EngineFailed("the connection to the engine was lost") from error
            if not received:
                body.close()
            elif data := body.feed(received):
                return data
        return b""


async def _exchange_heads(
    stream: trio.SocketStream, parser: h11.Connection, request: h11.Request, body: bytes
) -> UnixReply:
    head = parser.send(request) or b""
    # A server that refuses early may have answered before it has read everything.
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(head + body)
    try:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await stream.receive_some(RECEIVE_BYTES))
            elif isinstance(event, h11.Response):
                early, _ = parser.trailing_data
                return UnixReply(stream, event, _decoder(event), early)
            elif not isinstance(event, h11.InformationalResponse):
                raise EngineFailed("the engine closed the connection without an answer")
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
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
