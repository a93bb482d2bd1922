"""What sinks that stand before a request's own sink have in common."""

from __future__ import annotations

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.ports.engine import AnswerSink


class CollectingSink:
    """Takes all it is given: what it collects is bounded by whoever inherits."""

    @property
    def congested(self) -> bool:
        """Never."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""


class PassingSink:
    """Gives everything on to the sink behind it."""

    def __init__(self, sink: AnswerSink) -> None:
        self._sink = sink

    @property
    def congested(self) -> bool:
        """See `AnswerSink`."""
        return self._sink.congested

    async def drain(self) -> None:
        """See `AnswerSink`."""
        await self._sink.drain()

    def text(self, delta: str) -> None:
        """See `AnswerSink`."""
        self._sink.text(delta)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """See `AnswerSink`."""
        self._sink.finish(reason, usage)
