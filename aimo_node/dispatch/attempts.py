"""One answer on its way to a consumer: tries candidates until the first part is here.

After the first part a failure is final: what was sent cannot be taken back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Final, Protocol

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

OPEN_SECONDS_MAX: Final = 3.5
"""For a link to one candidate: four of them fit into the 15 s for which an edge holds back the head
of its response. A healthy dial takes milliseconds, one across a bad network two seconds."""


class Attempter(Protocol):
    """What an answer needs from the dispatcher that made it."""

    async def open_exchange(self, peer: PeerId, answer: RoutedAnswer) -> Exchange:
        """Send the request to that provider."""

    def others(self, answer: RoutedAnswer, tried: Set[PeerId]) -> Sequence[Candidate]:
        """Who may be tried instead, as things are now."""

    def attempt_begun(self, peer: PeerId) -> None:
        """The request goes to that provider."""

    def attempt_ended(self, peer: PeerId, *, failed: bool | None) -> None:
        """One provider is done with the request; `failed` is None if that says nothing of it."""

    def answer_begun(self, answer: RoutedAnswer) -> None:
        """The first part is here: no other provider will be tried."""

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
        self.model_digest = candidates[0].model_digest
        self.deadline = deadline
        self.outcome = "cancelled"
        """``ok``, ``cancelled`` or the name of the error the consumer heard."""
        self._started_at = trio.current_time()
        self._candidates = list(candidates)
        self._tried: set[PeerId] = set()
        self._attempter = attempter
        self._exchange: Exchange | None = None
        self._give_up_at = 0.0
        self._attempting = False
        self._begun = False
        self._cancelled = False

    async def attempt(self) -> None:
        """Send the request to the next candidate that takes it.

        Safe to cancel: called again, it goes on with the same candidate and what is left of its
        time.

        Raises:
            CodedError: nobody took it; the error of the last one. RequestTimeout.
        """
        while self._exchange is None:
            if not self._attempting:
                self._next_candidate()
            try:
                self._exchange = await self._open()
            except TryElsewhere as error:
                self._lost(error)
            except CodedError as error:
                self._over(error)
                raise
        self.path = self._exchange.path

    @property
    def may_queue(self) -> bool:
        """Whether the provider that is tried may let it wait: there is nobody else to ask."""
        return not self._candidates

    def _next_candidate(self) -> None:
        candidate = self._candidates.pop(0)
        self.provider, self.model_digest, self.path = candidate.peer, candidate.model_digest, ""
        self._tried.add(candidate.peer)
        self.attempts += 1
        self._attempting = True
        self._give_up_at = trio.current_time() + OPEN_SECONDS_MAX
        self._attempter.attempt_begun(candidate.peer)
        log.debug(
            "request.routed",
            request=self.request_id.hex(),
            model=self.model,
            provider=candidate.peer,
            attempt=self.attempts,
            reasons=candidate.reasons,
            others=len(self._candidates),
        )

    async def _open(self) -> Exchange:
        with trio.move_on_at(min(self._give_up_at, self.deadline)) as patience:
            exchange = await self._attempter.open_exchange(self.provider, self)
        if not patience.cancelled_caught:
            return exchange
        if trio.current_time() >= self.deadline:
            raise RequestTimeout("the request's deadline has passed")
        raise NetworkError(f"the provider could not be reached within {OPEN_SECONDS_MAX} s")

    async def receive(self, silence_seconds: float | None = None) -> Sequence[AnswerPart]:
        """See `dispatch.inference.Answer`."""
        silent_at = math.inf if silence_seconds is None else trio.current_time() + silence_seconds
        until = min(silent_at, self.deadline)
        while True:
            exchange = self._exchange
            if exchange is None:
                await self._reopen(until)
                parts: Sequence[AnswerPart] = ()
            else:
                try:
                    parts = await _receive_until(exchange, until)
                except TryElsewhere as error:
                    self._lost(error)
                    continue
                except CodedError as error:
                    self._over(error)
                    raise
            if parts:
                self._take(parts)
                return parts
            now = trio.current_time()
            if now >= self.deadline:
                late = RequestTimeout("the request's deadline has passed")
                self._over(late, failed=not self._begun)
                raise late
            if now >= silent_at:
                return ()

    async def _reopen(self, until: float) -> None:
        if not (self._attempting or self._candidates):
            raise StreamInterrupted("the answer has ended")
        with trio.move_on_at(until):
            await self.attempt()

    def _take(self, parts: Sequence[AnswerPart]) -> None:
        if not self._begun:
            self._begun = True
            self._candidates.clear()
            self._attempter.answer_begun(self)
        if type(parts[-1]) is Finish:
            self.outcome = "ok"
            self._release(failed=False)

    def _lost(self, error: TryElsewhere) -> None:
        """Let the next candidate try, or raise what the consumer has to hear."""
        is_fault = isinstance(error, NetworkError | EngineFailed)
        (log.info if is_fault else log.debug)(
            "attempt.failed",
            request=self.request_id.hex(),
            provider=self.provider,
            attempt=self.attempts,
            error=error.code.name,
            reason=error.message,
        )
        if self._begun:
            broken = StreamInterrupted(f"the answer broke off: {error.message}")
            self._over(broken, failed=is_fault)
            raise broken from error
        # Seconds may have passed: some are silent by now, others have come.
        self._candidates = list(self._attempter.others(self, self._tried))
        if not self._candidates:
            self._over(error, failed=is_fault)
            raise error
        self._release(failed=is_fault)

    def _over(self, error: CodedError, *, failed: bool = False) -> None:
        self.outcome = error.code.name
        self._candidates.clear()
        self._release(failed=failed)

    def _release(self, *, failed: bool | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
        if self._attempting:
            self._attempting = False
            self._attempter.attempt_ended(self.provider, failed=failed)

    def cancel(self) -> None:
        """The consumer left or has the whole answer; idempotent."""
        if self._cancelled:
            return
        self._cancelled = True
        self._candidates.clear()
        self._release(failed=False if self._begun else None)
        self._attempter.answer_ended(self)
        log.debug(
            "request.ended",
            request=self.request_id.hex(),
            model=self.model,
            provider=self.provider,
            path=self.path,
            attempts=self.attempts,
            outcome=self.outcome,
            seconds=round(trio.current_time() - self._started_at, 3),
        )


async def _receive_until(exchange: Exchange, deadline: float) -> Sequence[AnswerPart]:
    if deadline == math.inf:
        return await exchange.receive()
    with trio.move_on_at(deadline) as patience:
        parts = await exchange.receive()
    return () if patience.cancelled_caught else parts
