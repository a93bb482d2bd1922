"""An engine in memory: the same answer to everything, and faults on demand."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName
from aimo_node.domain.models import Feature, Health, Load, ModelInfo
from aimo_node.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import AnswerSink, Capabilities, EngineRequest, Progress

FAKE_ANSWER = ("Every ", "answer ", "of ", "the ", "fake ", "engine ", "is ", "this.")


class Fault(enum.Enum):
    """What the next request runs into."""

    REFUSES = "Overloaded before anything is written"
    BREAKS_OFF = "EngineFailed after the first token"


class FakeEngine:
    """Deterministic: one token for each turn of the scheduler, the tokens of `answer` in order.

    Attributes:
        requests: every request that was admitted, in order.
        answer: what is said to everything; a word a token.
    """

    def __init__(
        self,
        model: str = "fake",
        *,
        answer: tuple[str, ...] = FAKE_ANSWER,
        requests_max: int = 4,
        context_tokens: int = 1000,
    ) -> None:
        self.requests: list[EngineRequest] = []
        self.answer = answer
        self._model = ModelInfo(
            ModelName(model), context_tokens, digest=b"fake" * 8, features=(Feature.CONTINUE,)
        )
        self._requests_max = requests_max
        self._running: dict[int, trio.CancelScope] = {}
        self._faults: list[Fault] = []
        self._gate: trio.Event | None = None
        self._idle: trio.Event | None = None
        self._ready: Callable[[], None] | None = None
        self._health = Health.OFFLINE
        self._draining = False
        self._scope = trio.CancelScope()

    def fail_next(self, fault: Fault) -> None:
        """The next request that has no fault yet meets this one."""
        self._faults.append(fault)

    def hold(self) -> None:
        """Answers pause after their first token until `release`."""
        self._gate = self._gate or trio.Event()

    def release(self) -> None:
        """Answers go on."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def crash(self) -> None:
        """Every running request fails and new ones do too, until `revive`."""
        self._health = Health.OFFLINE
        for scope in list(self._running.values()):
            scope.cancel()

    def revive(self) -> None:
        """The engine is back, as after a restart."""
        if self._ready is not None:
            self._health = Health.HEALTHY
            self._ready()

    @property
    def running(self) -> int:
        """Requests in hand."""
        return len(self._running)

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """See `Engine`."""
        progress("nothing to load")
        self._ready = ready
        self._health = Health.HEALTHY
        try:
            with self._scope:
                ready()
                await trio.sleep_forever()
        finally:
            self.kill()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine`."""
        self._admit(request)
        fault = self._faults.pop(0) if self._faults else None
        if fault is Fault.REFUSES:
            raise Overloaded("the fake engine was told to refuse", retry_after_seconds=1)
        self.requests.append(request)
        key = id(request)
        with trio.CancelScope() as scope:
            self._running[key] = scope
            try:
                await self._answer(request, sink, fault)
                return
            finally:
                del self._running[key]
                if not self._running and self._idle is not None:
                    self._idle.set()
        raise EngineFailed("the fake engine died")

    async def count_tokens(self, request: EngineRequest) -> int:
        """Words of all messages."""
        return _words(request)

    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities("fake", (self._model,), self._requests_max, version="1")

    def health(self) -> Health:
        """See `Engine`."""
        return self._health

    def load(self) -> Load:
        """See `Engine`."""
        return Load(load=self.running / self._requests_max, running=self.running)

    async def drain(self) -> None:
        """See `Engine`."""
        self._draining = True
        if self._running:
            self._idle = self._idle or trio.Event()
            await self._idle.wait()

    def kill(self) -> None:
        """See `Engine`."""
        self.crash()
        self._health = Health.OFFLINE
        self._ready = None
        self._scope.cancel()

    def _admit(self, request: EngineRequest) -> None:
        if request.model != self._model.name:
            raise ModelNotFound(f"the fake engine serves {self._model.name}")
        if self._draining:
            raise Draining("the fake engine drains")
        if self._health is not Health.HEALTHY:
            raise EngineFailed("the fake engine is not running")
        if self.running >= self._requests_max:
            raise Overloaded("the fake engine is at its limit")
        if request.endpoint is Endpoint.CHAT and _words(request) > self._model.context_tokens:
            raise ContextLengthExceeded("too many words", param="messages")

    async def _answer(self, request: EngineRequest, sink: AnswerSink, fault: Fault | None) -> None:
        answer = self.answer
        limit = request.body.get("max_tokens") or len(answer)
        tokens = answer[:limit]
        for token in tokens:
            if request.stream:
                sink.text(token)
            await self._pause(sink)
            if fault is Fault.BREAKS_OFF:
                raise EngineFailed("the fake engine was told to break off")
        if not request.stream:
            sink.text("".join(tokens))
        reason = FinishReason.LENGTH if limit < len(answer) else FinishReason.STOP
        sink.finish(reason, Usage(_words(request), len(tokens)))

    async def _pause(self, sink: AnswerSink) -> None:
        await trio.lowlevel.checkpoint()
        if self._gate is not None:
            await self._gate.wait()
        if sink.congested:
            await sink.drain()


def _words(request: EngineRequest) -> int:
    messages: list[dict[str, Any]] = request.body.get("messages", [])
    return sum(len(str(message.get("content")).split()) for message in messages)
