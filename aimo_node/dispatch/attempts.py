"""One answer on its way to a consumer: tries candidates until the first part is here.

After the first part a failure is final: what was sent cannot be taken back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import structlog
import trio

from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.domain.ids import ModelName, PeerId, RequestId
from aimo_node.errors import (
    CodedError,
    EngineFailed,
    NetworkError,
    RequestTimeout,
    StreamInterrupted,
    TryElsewhere,
)
from aimo_node.ports.peer_network import Exchange
from aimo_node.routing.policy import Candidate

log = structlog.get_logger()


class Attempter(Protocol):
    """What an answer needs from the dispatcher that made it."""

    async def open_exchange(self, peer: PeerId, answer: RoutedAnswer) -> Exchange:
        """Send the request to that provider."""

    def attempt_ended(self, peer: PeerId, *, failed: bool) -> None:
        """One provider is done with the request."""

    def answer_ended(self, answer: RoutedAnswer) -> None:
        """The consumer is done with the answer."""


class RoutedAnswer:
    """An answer with fail-over before its first part. One task reads it."""

    def __init__(
        self,
        request_id: RequestId,
        model: ModelName,
        candidates: Sequence[Candidate],
        attempter: Attempter,
        *,
        deadline: float,
    ) -> None:
        """`deadline` is a time of trio's clock."""
        self.request_id = request_id
        self.model = model
        self.provider = candidates[0].peer
        self.path = ""
        self.attempts = 0
        self.deadline = deadline
        self._candidates = list(candidates)
        self._attempter = attempter
        self._exchange: Exchange | None = None
        self._started = False
        self._ended = False

    async def attempt(self) -> None:
        """Send the request to the next candidate that takes it.

        Raises:
            CodedError: nobody took it; the error of the last one.
        """
        last: CodedError = NetworkError("no provider could be reached")
        while self._candidates:
            candidate = self._candidates.pop(0)
            self.provider = candidate.peer
            self.attempts += 1
            try:
                self._exchange = await self._attempter.open_exchange(candidate.peer, self)
            except TryElsewhere as error:
                self._lost(error, open_too=False)
                last = error
                continue
            self.path = self._exchange.path
            return
        raise last

    async def receive(self, silence_seconds: float | None = None) -> Sequence[AnswerPart]:
        """See `dispatch.inference.Answer`."""
        silent_at = math.inf if silence_seconds is None else trio.current_time() + silence_seconds
        while True:
            exchange = self._exchange
            if exchange is None:
                raise StreamInterrupted("the answer has ended")
            try:
                parts = await _receive_until(exchange, min(silent_at, self.deadline))
            except TryElsewhere as error:
                await self._recover(error)
                continue
            except CodedError:
                self._release(failed=False)
                raise
            if parts:
                self._started = True
                if type(parts[-1]) is Finish:
                    self._release(failed=False)
                return parts
            if trio.current_time() >= self.deadline:
                self._release(failed=not self._started)
                raise RequestTimeout("the request's deadline has passed")
            return ()

    async def _recover(self, error: TryElsewhere) -> None:
        """Go on with the next candidate, or raise what the consumer has to hear."""
        self._lost(error, open_too=True)
        if self._started:
            raise StreamInterrupted(f"the answer broke off: {error.message}") from error
        if not self._candidates:
            raise error
        try:
            await self.attempt()
        except TryElsewhere as last:
            raise last from error

    def _lost(self, error: TryElsewhere, *, open_too: bool) -> None:
        log.info(
            "attempt.failed",
            request=self.request_id.hex(),
            provider=self.provider,
            attempt=self.attempts,
            error=error.code.name,
            reason=error.message,
        )
        if open_too:
            self._release(failed=isinstance(error, NetworkError | EngineFailed))

    def _release(self, *, failed: bool) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
            self._attempter.attempt_ended(self.provider, failed=failed)

    def cancel(self) -> None:
        """The consumer left or has the whole answer; idempotent."""
        if not self._ended:
            self._ended = True
            self._release(failed=False)
            self._attempter.answer_ended(self)


async def _receive_until(exchange: Exchange, deadline: float) -> Sequence[AnswerPart]:
    if deadline == math.inf:
        return await exchange.receive()
    with trio.move_on_at(deadline) as patience:
        parts = await exchange.receive()
    return () if patience.cancelled_caught else parts
