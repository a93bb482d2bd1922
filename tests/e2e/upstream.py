"""An OpenAI-compatible server on bare sockets, inside the test: it tells when it was hung up on."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

MODEL = "upstream"
TOKEN_SECONDS = 0.01
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %b\r\n\r\n"


class Upstream:
    """Answers ``/v1/models``, and every chat with tokens for as long as somebody listens.

    Attributes:
        port: where it listens, once it does.
        answering: chats that run.
        hung_up_at: when the other side closed each chat's connection, in trio's time.
    """

    def __init__(self) -> None:
        self.port = 0
        self.answering = 0
        self.hung_up_at: list[float] = []
        self._hung_up = trio.Event()

    async def wait_hung_up(self, count: int) -> float:
        """When the chat of that number (from 1) was left alone."""
        while len(self.hung_up_at) < count:
            await self._hung_up.wait()
        return self.hung_up_at[count - 1]

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection with one request."""
        try:
            first = await self._read_request(stream)
            if first.startswith("POST"):
                await self._chat(stream)
            else:
                body = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
                await stream.send_all(HEAD % b"application/json" + json.dumps(body).encode())
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _read_request(self, stream: trio.SocketStream) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._some(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next((line for line in lines if line.startswith("content-length:")), ":0")
        left = int(length.partition(":")[2]) - len(body)
        while left > 0:
            left -= len(await self._some(stream))
        return lines[0].upper()

    async def _some(self, stream: trio.SocketStream) -> bytes:
        data = await stream.receive_some(65536)
        if not data:
            raise trio.BrokenResourceError
        return data

    async def _chat(self, stream: trio.SocketStream) -> None:
        self.answering += 1
        await stream.send_all(HEAD % b"text/event-stream")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, stream, nursery.cancel_scope)
            while True:
                choice = {"index": 0, "delta": {"content": "token "}, "finish_reason": None}
                event = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
                await stream.send_all(b"data: " + json.dumps(event).encode() + b"\n\n")
                await trio.sleep(TOKEN_SECONDS)

    async def _watch(self, stream: trio.SocketStream, chat: trio.CancelScope) -> None:
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
        self.answering -= 1
        self.hung_up_at.append(trio.current_time())
        self._hung_up.set()
        self._hung_up = trio.Event()
        chat.cancel()


@asynccontextmanager
async def open_upstream() -> AsyncIterator[Upstream]:
    """An upstream that listens on a free port of this machine."""
    upstream = Upstream()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        upstream.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, upstream.serve, listeners)
        yield upstream
        nursery.cancel_scope.cancel()
