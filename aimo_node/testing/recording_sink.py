"""An `AnswerSink` that keeps what an engine writes and can play a slow consumer."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason


class RecordingSink:
    """Used by one request and the test around it.

    Attributes:
        parts: everything written, in order.
        first: set with the first part.
    """

    def __init__(self) -> None:
        self.parts: list[AnswerPart] = []
        self.first = trio.Event()
        self._flowing: trio.Event | None = None

    def text(self, delta: str) -> None:
        """See `AnswerSink`."""
        if not delta:
            raise AssertionError("an empty text delta was written")
        self._append(delta)

    def json(self, choices: bytes) -> None:
        """See `AnswerSink`; checks that it is an array on one line."""
        if b"\n" in choices or b"\r" in choices:
            raise AssertionError("a JSON delta with a line break was written")
        msgspec.json.decode(choices, type=list[dict[str, Any]])
        self._append(JsonDelta(choices))

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """See `AnswerSink`."""
        self._append(Finish(reason, usage))

    @property
    def congested(self) -> bool:
        """True between `stall` and `flow`."""
        return self._flowing is not None

    async def drain(self) -> None:
        """Wait for `flow`."""
        if self._flowing is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._flowing.wait()

    def stall(self) -> None:
        """The consumer stops reading."""
        self._flowing = self._flowing or trio.Event()

    def flow(self) -> None:
        """The consumer reads on."""
        flowing, self._flowing = self._flowing, None
        if flowing is not None:
            flowing.set()

    @property
    def written(self) -> str:
        """All text deltas joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of all JSON deltas, in order."""
        deltas = (part.data for part in self.parts if isinstance(part, JsonDelta))
        return [choice for data in deltas for choice in msgspec.json.decode(data)]

    @property
    def end(self) -> Finish | None:
        """How the answer ended, None if it did not."""
        last = self.parts[-1] if self.parts else None
        return last if isinstance(last, Finish) else None

    def _append(self, part: AnswerPart) -> None:
        if self.end is not None:
            raise AssertionError(f"{part!r} was written after the end")
        self.parts.append(part)
        self.first.set()
