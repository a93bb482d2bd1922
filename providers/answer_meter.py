"""Measures an engine by its answers: time to the first token, prompt tokens found in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.ports.engine import AnswerSink

SMOOTHING: Final = 0.2
"""Weight of the latest answer: after some ten the ones before are forgotten."""


class AnswerMeter:
    """Owned by one engine.

    Attributes:
        first_token_seconds: from the question to the first piece of its answer, smoothed.
        prefix_hits: share of the prompt's tokens that were cached, smoothed.
    """

    def __init__(self) -> None:
        self.first_token_seconds = 0.0
        self.prefix_hits = 0.0
        self._is_first = True

    def watch(self, sink: AnswerSink) -> MeteredSink:
        """A sink to put in front of `sink`; the question is asked now."""
        return MeteredSink(self, sink)

    def first_token(self, seconds: float) -> None:
        """An answer has begun."""
        if not self.first_token_seconds:
            self.first_token_seconds = seconds
        self.first_token_seconds += SMOOTHING * (seconds - self.first_token_seconds)

    def finished(self, usage: Usage) -> None:
        """An answer is complete."""
        if usage.prompt_tokens:
            hits = min(1.0, usage.cached_tokens / usage.prompt_tokens)
            self.prefix_hits += (1.0 if self._is_first else SMOOTHING) * (hits - self.prefix_hits)
            self._is_first = False


class MeteredSink:
    """Gives everything on; after the first piece at no cost."""

    def __init__(self, meter: AnswerMeter, sink: AnswerSink) -> None:
        self.text: Callable[[str], None] = self._first_text
        self.json: Callable[[bytes], None] = self._first_json
        self._meter = meter
        self._sink = sink
        self._asked_at = trio.current_time()

    @property
    def congested(self) -> bool:
        """See `AnswerSink`."""
        return self._sink.congested

    async def drain(self) -> None:
        """See `AnswerSink`."""
        await self._sink.drain()

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """See `AnswerSink`."""
        self._meter.finished(usage)
        self._sink.finish(reason, usage)

    def _first_text(self, delta: str) -> None:
        self._begin()
        self.text(delta)

    def _first_json(self, choices: bytes) -> None:
        self._begin()
        self.json(choices)

    def _begin(self) -> None:
        self._meter.first_token(trio.current_time() - self._asked_at)
        self.text, self.json = self._sink.text, self._sink.json
