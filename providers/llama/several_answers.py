"""Several answers to one request, one after another, for engines that give one at a time."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


class SeveralAnswers:
    """Numbers the answers and ends them together.

    Args:
        sink: gets everything.
        field: ``delta`` in a chat, ``text`` for completions.
    """

    def __init__(self, sink: AnswerSink, field: Literal["delta", "text"]) -> None:
        self._sink = sink
        self._field = field
        self._reason: FinishReason | None = None
        self._usage = Usage()

    def answer(self, index: int, *, same_prompt: bool) -> AnswerSink:
        """The sink of one answer; the one before must be complete.

        Args:
            same_prompt: as the answer before, which has counted the prompt.
        """
        return _OneAnswer(self, index, same_prompt=same_prompt)

    def finish(self) -> None:
        """All answers are complete.

        Raises:
            EngineFailed: they are not.
        """
        if self._reason is None:
            raise EngineFailed("the engine's answer broke off before its end")
        self._sink.finish(self._reason, self._usage)

    @property
    def sink(self) -> AnswerSink:
        """Where the answers go."""
        return self._sink

    def write(self, index: int, delta: str, reason: FinishReason | None = None) -> None:
        """Text or the end of an answer other than the first."""
        told = delta if self._field == "text" else ({"content": delta} if delta else {})
        choice = {
            "index": index,
            self._field: told,
            "finish_reason": reason.text if reason else None,
        }
        self._sink.json(_encode([choice]))

    def end(self, index: int, reason: FinishReason, usage: Usage) -> None:
        """One answer is complete; the first one's reason ends them all."""
        if index:
            self.write(index, "", reason)
        else:
            self._reason = reason
        total = self._usage
        self._usage = Usage(
            total.prompt_tokens + usage.prompt_tokens,
            total.completion_tokens + usage.completion_tokens,
            total.cached_tokens + usage.cached_tokens,
        )


class _OneAnswer:
    def __init__(self, all_answers: SeveralAnswers, index: int, *, same_prompt: bool) -> None:
        self._all = all_answers
        self._index = index
        self._same_prompt = same_prompt

    @property
    def congested(self) -> bool:
        return self._all.sink.congested

    async def drain(self) -> None:
        await self._all.sink.drain()

    def text(self, delta: str) -> None:
        if self._index:
            self._all.write(self._index, delta)
        else:
            self._all.sink.text(delta)

    def json(self, choices: bytes) -> None:
        if self._index:
            found: list[dict[str, Any]] = _decode(choices)
            choices = _encode([{**choice, "index": self._index} for choice in found])
        self._all.sink.json(choices)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        if self._same_prompt:
            usage = Usage(0, usage.completion_tokens, 0)
        self._all.end(self._index, reason, usage)
