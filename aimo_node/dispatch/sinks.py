"""Where an engine's answer goes: piece by piece to a stream, or collected into one response."""

from __future__ import annotations

from typing import Final, Protocol

import trio

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import ContentType, FinishReason
from aimo_node.errors import EngineFailed, RequestCancelled
from aimo_node.ports.peer_network import IncomingRequest

BACKLOG_BYTES: Final = 64 * 1024
"""Above this an engine that can be held back is held back."""
STALL_SECONDS: Final = 60.0
"""A consumer that takes nothing for so long is given up."""
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
"""A whole answer; also what the wire takes as one body."""


class ChunkMetrics(Protocol):
    """What a stream counts."""

    def first_token(self, seconds: float) -> None:
        """The first part was produced."""

    def chunks(self, count: int) -> None:
        """Parts were produced."""


class StreamSink:
    """Sends each delta as it comes.

    Attributes:
        produced: pieces so far.
        usage: what the whole answer used; None until it is finished.
    """

    __slots__ = ("_incoming", "_metrics", "_started", "produced", "usage")

    def __init__(self, incoming: IncomingRequest, metrics: ChunkMetrics) -> None:
        self._incoming = incoming
        self._metrics = metrics
        self._started = trio.current_time()
        self.produced = 0
        self.usage: Usage | None = None

    def text(self, delta: str) -> None:
        """Append plain text."""
        if delta:
            self._incoming.send_text(delta)
            self._count()

    def json(self, choices: bytes) -> None:
        """Append a JSON delta."""
        self._incoming.send_json(choices)
        self._count()

    def _count(self) -> None:
        self.produced += 1
        if self.produced == 1:
            self._metrics.first_token(trio.current_time() - self._started)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """End the answer."""
        self.usage = usage
        self._incoming.finish(Finish(reason, usage))
        self._metrics.chunks(self.produced)

    @property
    def congested(self) -> bool:
        """Whether the consumer is slower than the engine."""
        return self._incoming.backlog_bytes > BACKLOG_BYTES

    async def drain(self) -> None:
        """Wait until not congested.

        Raises:
            RequestCancelled: the consumer did not move for `STALL_SECONDS`.
        """
        while (backlog := self._incoming.backlog_bytes) > BACKLOG_BYTES:
            with trio.move_on_after(STALL_SECONDS) as patience:
                await self._incoming.wait_backlog_below(backlog)
            if patience.cancelled_caught:
                raise RequestCancelled(f"the consumer took nothing for {STALL_SECONDS:.0f} s")


class WholeSink:
    """Collects the answer and sends it as one response.

    Attributes:
        produced, usage: as in `StreamSink`.
    """

    __slots__ = ("_incoming", "_json", "_size", "_text", "produced", "usage")

    def __init__(self, incoming: IncomingRequest) -> None:
        self._incoming = incoming
        self._text: list[bytes] = []
        self._json: bytes | None = None
        self._size = 0
        self.produced = 0
        self.usage: Usage | None = None

    def text(self, delta: str) -> None:
        """Append plain text."""
        piece = delta.encode(errors="replace")  # an engine may cut a surrogate pair in two
        self._grow(len(piece))
        self._text.append(piece)

    def json(self, choices: bytes) -> None:
        """The whole answer, as ``choices`` or ``data``."""
        self._grow(len(choices))
        if self._json is not None:
            raise EngineFailed("the engine gave two JSON answers to a request without stream")
        self._json = choices

    def _grow(self, size: int) -> None:
        self.produced += 1
        self._size += size
        if self._size > ANSWER_BYTES_MAX:
            raise EngineFailed(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Send it."""
        if self._json is not None and self._text:
            raise EngineFailed("the engine mixed text and JSON in one answer")
        self.usage = usage
        finish = Finish(reason, usage)
        if self._json is not None:
            self._incoming.respond(ContentType.JSON, self._json, finish)
        else:
            self._incoming.respond(ContentType.TEXT, b"".join(self._text), finish)

    @property
    def congested(self) -> bool:
        """Never: nothing is sent before the end."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""
        await trio.lowlevel.checkpoint()
