"""A streamed response: parts as they come, comments in silence, an error as the last event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog
from quart.wrappers.response import ResponseBody

from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.edge.inference import OpenAnswer, cut_short, out_of_order
from aimo_node.edge.running import Running
from aimo_node.errors import CodedError

COMMENT: Final = b": waiting\n\n"
"""Server-sent events ignore it; proxies see that the connection lives."""

log = structlog.get_logger(__name__)


class Renderer(Protocol):
    """Writes parts in one dialect's events. One per answer."""

    def render(self, parts: Sequence[AnswerPart]) -> bytes:
        """The events of these parts, and after a `Finish` the end of the stream.

        Raises:
            EngineFailed: the provider sent what cannot be shown.
        """

    def render_error(self, error: CodedError) -> bytes:
        """The event that ends a stream which failed."""


class EventStream(ResponseBody):
    """The body of a streamed response, written by one task.

    A plain iterator instead of an async generator: it is the middle of the hot path, and its
    clean-up must not depend on a generator being finalised. `close` is called by the connection,
    whether or not the body was ever asked for.

    Attributes:
        scope: cancelled from outside once the grace period of a drain is over.
    """

    def __init__(self, opened: OpenAnswer, renderer: Renderer, running: Running) -> None:
        self.scope = running.enter()
        self._running = running
        self._opened = opened
        self._renderer = renderer
        self._is_ended = False

    async def __aenter__(self) -> EventStream:
        """Nothing: the parts are already on their way."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let the provider go."""
        self.close()

    def __aiter__(self) -> EventStream:
        """Once only."""
        return self

    async def __anext__(self) -> bytes:
        """The next bytes for the consumer, all that is there joined."""
        if self._is_ended:
            raise StopAsyncIteration
        try:
            parts = await self._opened.receive()
            if not parts:
                return COMMENT
            data = self._renderer.render(parts)
        except CodedError as error:
            return self._end(error)
        except Exception:  # the root of a stream: its consumer hears of a bug
            log.exception("stream.failed", **self._opened.headers)
            return self._end(out_of_order("in mid-stream"))
        if type(parts[-1]) is Finish:
            self._is_ended = True
            self._opened.succeed()
        return data

    def farewell(self) -> bytes:
        """The last event for a consumer whose stream is cut; empty if it was complete."""
        return b"" if self._is_ended else self._end(cut_short())

    def close(self) -> None:
        """Let the provider go; idempotent."""
        self._running.leave(self.scope)
        self._opened.close()

    def _end(self, error: CodedError) -> bytes:
        self._is_ended = True
        self._opened.fail(error)
        return self._renderer.render_error(error)
