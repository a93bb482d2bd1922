"""From a validated request to parts in hand: what every dialect of the edge does the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import trio

from aimo_node.dispatch.inference import Answer, InferenceDoor, InferenceRequest
from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.edge.metrics import EdgeMetrics
from aimo_node.edge.running import Running
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.errors import CodedError, Draining, InternalError

OK: Final = "ok"
CANCELLED: Final = "cancelled"
NO_PATH: Final = "none"
"""What is said of a provider to which no way led."""


class OpenAnswer:
    """One request and its answer in the hands of one task, with what is counted about it.

    Whoever gets one from `Desk.admit` calls `close` in the end, always; until then the provider
    is working.
    """

    __slots__ = (
        "_answer",
        "_desk",
        "_first",
        "_has_begun",
        "_outcome",
        "_request",
        "_silence",
        "_started",
    )

    def __init__(
        self, desk: Desk, request: InferenceRequest, silence_seconds: float | None
    ) -> None:
        self._answer: Answer | None = None
        self._desk = desk
        self._first: Sequence[AnswerPart] | None = None
        self._has_begun = False
        self._outcome = CANCELLED
        self._request = request
        self._silence = silence_seconds
        self._started = trio.current_time()
        desk.metrics.request_started(self._endpoint)

    @property
    def _endpoint(self) -> str:
        return self._request.endpoint.name.lower()

    @property
    def answer(self) -> Answer:
        """Who answers; only after `start`."""
        if self._answer is None:
            raise RuntimeError("the request was not started")
        return self._answer

    @property
    def headers(self) -> dict[str, str]:
        """The ``x-aimo-`` headers of the response; none before the dispatcher has admitted it."""
        answer = self._answer
        if answer is None:
            return {}
        request_id = answer.request_id.hex()
        headers = {
            "x-aimo-request-id": request_id,
            "x-request-id": request_id,  # where OpenAI's SDKs look for it
            "x-aimo-provider": answer.provider,
            "x-aimo-path": answer.path or NO_PATH,
            "x-aimo-attempts": str(answer.attempts),
        }
        if answer.model_digest:
            headers["x-aimo-model-digest"] = answer.model_digest.hex()
        return headers

    @property
    def route(self) -> dict[str, Any]:
        """What `headers` say of the way, for answers that have none of their own."""
        answer = self._answer
        if answer is None:
            return {}
        return {
            "request_id": answer.request_id.hex(),
            "provider": answer.provider,
            "path": answer.path or NO_PATH,
            "attempts": answer.attempts,
        }

    async def start(self) -> None:
        """Hand the request to the dispatcher.

        Raises:
            CodedError: refused, or every candidate failed.
        """
        self._answer = await self._desk.door.open(self._request, self._admitted)

    def _admitted(self, answer: Answer) -> None:
        """Who is asked is worth saying even if nobody can be reached."""
        self._answer = answer

    async def hold(self, hold_seconds: float) -> None:
        """Wait for the first parts, at most until so long after the request came.

        Raises:
            CodedError: the request failed; the response can still say so properly.
        """
        left = self._started + hold_seconds - trio.current_time()
        self._first = self._counted(await self.answer.receive(max(0.0, left)))

    async def receive(self) -> Sequence[AnswerPart]:
        """The parts that have arrived; empty after the silence that was asked for.

        Raises:
            CodedError: the request failed; nothing comes after it.
        """
        parts = self._first
        if parts is not None:
            self._first = None
            return parts
        return self._counted(await self.answer.receive(self._silence))

    def _counted(self, parts: Sequence[AnswerPart]) -> Sequence[AnswerPart]:
        if parts:
            metrics = self._desk.metrics
            if not self._has_begun:
                self._has_begun = True
                metrics.first_token(trio.current_time() - self._started)
            metrics.chunks(len(parts) - (type(parts[-1]) is Finish))
        return parts

    def succeed(self) -> None:
        """The whole answer was received; closes."""
        self._outcome = OK
        self.close()

    def fail(self, error: CodedError) -> None:
        """The request ended with this error; closes."""
        self._outcome = error.code.name
        self.close()

    def close(self) -> None:
        """Nobody reads any more: let the provider go and count the end; idempotent."""
        outcome = self._outcome
        if not outcome:
            return
        self._outcome = ""
        if self._answer is not None:
            self._answer.cancel()
        seconds = trio.current_time() - self._started
        self._desk.metrics.request_ended(self._endpoint, outcome, seconds)


class Desk:
    """Where the dialects hand in requests; it refuses them while the node goes away."""

    def __init__(
        self,
        door: InferenceDoor,
        settings: EdgeSettings,
        drain: DrainSignals,
        metrics: EdgeMetrics,
    ) -> None:
        self.door = door
        self.settings = settings
        self.drain = drain
        self.metrics = metrics
        self.running = Running()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self.drain.begun.is_set() or self.door.draining

    async def cut_after_grace(self) -> None:
        """Wait for the end of a drain's grace period, then end what still runs."""
        await self.drain.grace_over.wait()
        self.drain.begun.set()
        self.running.cut()

    def admit(
        self, request: InferenceRequest, *, silence_seconds: float | None = None
    ) -> OpenAnswer:
        """Take a request; nothing is sent before `OpenAnswer.start`.

        Args:
            silence_seconds: after which `OpenAnswer.receive` returns nothing; None waits on.

        Raises:
            Draining: the node goes away.
        """
        if self.draining:
            raise Draining("This node is going away: try again, another one may answer.")
        return OpenAnswer(self, request, silence_seconds)


def cut_short() -> Draining:
    """The error for requests that still run when the grace period of a drain is over."""
    return Draining("This node went away before the answer was complete.")


def out_of_order(cause: str) -> InternalError:
    """What a consumer is told of a bug of ours; the log has the rest."""
    return InternalError(f"The node failed {cause}; its log says why.")
