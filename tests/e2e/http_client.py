"""A small HTTP/1.1 client on trio: whole answers, and event streams read event by event.

Made for thousands of streams in one process, and for a consumer that stalls, leaves or counts.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

READ_BYTES = 65_536
DONE = "[DONE]"
CHAT_PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """What an error says."""
        return self.json["error"]


class Connection:
    """One connection with one response; `read` never waits for more than there is."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.status = 0
        self.headers: dict[str, str] = {}
        self._buffer = bytearray()
        self._left = 0
        self._is_chunked = False
        self._is_over = False

    async def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a request; `body` is sent as JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1"]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self.stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def read_head(self) -> None:
        """Read status and headers."""
        while b"\r\n\r\n" not in self._buffer:
            await self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self._left = int(self.headers.get("content-length", "0"))
        self._is_over = not self._is_chunked and not self._left

    async def read(self) -> bytes:
        """The next bytes of the body; empty at its proper end.

        Raises:
            trio.BrokenResourceError: the connection ended before the body did.
        """
        while True:
            data = self._take()
            if data or self._is_over:
                return data
            await self._fill()

    async def read_all(self) -> bytes:
        """The whole body."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def _take(self) -> bytes:
        if not self._is_chunked:
            data = bytes(self._buffer[: self._left])
            self._left -= len(data)
            self._buffer.clear()
            self._is_over = not self._left
            return data
        pieces = []
        buffer, offset = self._buffer, 0
        while (line_end := buffer.find(b"\r\n", offset)) >= 0:
            size = int(buffer[offset:line_end], 16)
            start, end = line_end + 2, line_end + 2 + size
            if len(buffer) < end + 2:
                break
            if not size:
                self._is_over = True
                break
            pieces.append(buffer[start:end])
            offset = end + 2
        del buffer[:offset]
        return b"".join(pieces)

    async def _fill(self) -> None:
        data = await self.stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("the connection ended before the response did")
        self._buffer += data


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """A connection to a door on this machine; leaving the block hangs up at once."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        yield Connection(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def ask(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> Answer:
    """One request and its whole answer."""
    async with connect(port) as connection:
        await connection.send(method, path, body, headers)
        await connection.read_head()
        return Answer(connection.status, connection.headers, await connection.read_all())


def chat(model: str, text: str = "Hi", **settings: Any) -> dict[str, Any]:
    """The body of a streamed chat request; `delay_ms` is the echo engine's."""
    extension = {"delay_ms": settings.pop("delay_ms")} if "delay_ms" in settings else None
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
    return body | settings | ({"aimo": extension} if extension else {})


@dataclass
class Stream:
    """One streamed chat as its consumer sees it.

    Attributes:
        events: the objects after ``data:``, without the final mark.
        ended: ``done``, ``error`` (an error event), ``cut`` (the connection broke), or empty.
    """

    connection: Connection
    events: list[dict[str, Any]] = field(default_factory=list)
    comments: int = 0
    is_done: bool = False
    _rest: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Those of the response."""
        return self.connection.headers

    @property
    def provider(self) -> str:
        """Who answers."""
        return self.headers["x-aimo-provider"]

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(
            choice["delta"].get("content") or ""
            for event in self.events
            for choice in event.get("choices", ())
        )

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The error events."""
        return [event["error"] for event in self.events if "error" in event]

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, if it said so."""
        reasons = [
            choice["finish_reason"] for event in self.events for choice in event.get("choices", ())
        ]
        return next((reason for reason in reasons if reason), None)

    async def read_some(self) -> bool:
        """Take in what comes next; False at the proper end of the body."""
        data = await self.connection.read()
        *complete, self._rest = (self._rest + data).split(b"\n\n")
        for event in complete:
            self._take(event)
        return bool(data)

    def _take(self, event: bytes) -> None:
        if event.startswith(b":"):
            self.comments += 1
            return
        assert event.startswith(b"data: "), event
        data = event[6:].decode()
        assert not self.is_done, f"after the end: {data}"
        if data == DONE:
            self.is_done = True
        else:
            self.events.append(json.loads(data))

    async def read_to_the_end(self) -> "Stream":
        """Take in everything."""
        while await self.read_some():
            pass
        assert not self._rest, self._rest
        return self

    async def read_rest(self) -> AsyncIterator[str]:
        """The text of all events still to come, kept nowhere: for answers of megabytes."""
        while await self.read_some():
            text, self.events = self.text, []
            yield text

    async def read_until_text(self, tokens: int = 1) -> "Stream":
        """Take in at least so many tokens."""
        while len(self.text.split()) < tokens:
            assert await self.read_some(), f"ended after {self.text!r}: {self.errors}"
        return self


@asynccontextmanager
async def open_stream(
    port: int, body: dict[str, Any], headers: Mapping[str, str] = {}
) -> AsyncIterator[Stream]:
    """A streamed chat whose head has been read and says that all is well."""
    async with connect(port) as connection:
        await connection.send("POST", CHAT_PATH, body, headers)
        await connection.read_head()
        if connection.status != 200:
            raise AssertionError(f"{connection.status}: {await connection.read_all()!r}")
        yield Stream(connection)


async def stream_chat(port: int, model: str, text: str = "Hi", **settings: Any) -> Stream:
    """A whole streamed chat."""
    async with open_stream(port, chat(model, text, **settings)) as stream:
        return await stream.read_to_the_end()


def echo_text(text: str, tokens: int) -> str:
    """What the echo engine answers to `text` within so many tokens."""
    words = text.split()[:tokens]
    return "".join(f"{word} " for word in (*words, *(f"w{i}" for i in range(tokens - len(words)))))


async def metric(port: int, name: str, **labels: str) -> float:
    """The value of one sample of a node's metrics."""
    wanted = ",".join(f'{label}="{value}"' for label, value in labels.items())
    answer = await ask(port, "GET", "/metrics")
    start = f"{name}{{{wanted}}} " if wanted else f"{name} "
    for line in answer.body.decode().splitlines():
        if line.startswith(start):
            return float(line.removeprefix(start))
    raise AssertionError(f"no {start} in {answer.body.decode()}")
