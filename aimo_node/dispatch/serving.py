"""The provider's side of a request: admit it, run the engine, stream the answer back."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

import structlog
import trio

from aimo_node.dispatch.parameters import OwnerLimits, read_parameters
from aimo_node.dispatch.sinks import StreamSink, WholeSink
from aimo_node.domain.ids import ModelName, split_pinned
from aimo_node.domain.models import EngineState, Health, Load, ModelInfo
from aimo_node.errors import (
    CodedError,
    Draining,
    EngineFailed,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
)
from aimo_node.ports.engine import Engine, EngineRequest
from aimo_node.ports.peer_network import IncomingRequest

log = structlog.get_logger()

BODY_SECONDS: Final = 60.0
"""How long an upload may take."""
DEADLINE_SECONDS_MAX: Final = 3_600.0


class ServingMetrics(Protocol):
    """What serving counts."""

    def request_started(self, endpoint: str) -> None:
        """A request was admitted."""

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        """It ended; `outcome` is ``ok``, ``cancelled`` or an error's name."""

    def first_token(self, seconds: float) -> None:
        """Its first part was produced."""

    def chunks(self, count: int) -> None:
        """Parts were produced."""


class ProviderService:
    """Serves requests with one engine, within its limit. One per provider."""

    def __init__(
        self, engine: Engine, metrics: ServingMetrics, limits: OwnerLimits | None = None
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._limits = limits or OwnerLimits()
        self._draining = False
        self._ready = False
        self._idle = trio.Event()
        self.running = 0

    def engine_ready(self) -> None:
        """The engine can answer."""
        self._ready = True

    @property
    def engine_state(self) -> EngineState:
        """Where the engine is in its life, as the descriptor says it."""
        if self._draining:
            return EngineState.STOPPING
        if not self._ready:
            return EngineState.STARTING
        health = self._engine.health()
        return EngineState.ERROR if health is Health.OFFLINE else EngineState.RUNNING

    def health(self) -> Health:
        """Whether new requests should come."""
        if self._draining or not self._ready:
            return Health.OFFLINE
        return self._engine.health()

    def load(self) -> Load:
        """How busy: the engine's own account, and what this node has sent it."""
        load = self._engine.load()
        limit = self._engine.capabilities().requests_max if self._ready else 0
        running = max(load.running, self.running)
        share = running / limit if limit else load.load
        return Load(min(1.0, max(load.load, share)), running, load.waiting, load.kv_used)

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Return when no request is running."""
        while self.running:
            self._idle = trio.Event()
            await self._idle.wait()

    async def handle(self, incoming: IncomingRequest) -> None:
        """One request from admission to its end; errors become Error frames.

        Raises:
            CodedError: refused or failed; the link tells the edge.
        """
        self._admit()
        self.running += 1
        endpoint = incoming.endpoint.name.lower()
        started = trio.current_time()
        outcome = "cancelled"
        self._metrics.request_started(endpoint)
        try:
            with trio.fail_after(min(incoming.deadline_ms / 1000, DEADLINE_SECONDS_MAX)):
                await self._serve(incoming)
            outcome = "ok"
        except trio.TooSlowError as error:
            outcome = RequestTimeout.code.name
            raise RequestTimeout("the request's deadline has passed") from error
        except CodedError as error:
            outcome = error.code.name
            raise
        finally:
            self._metrics.request_ended(endpoint, outcome, trio.current_time() - started)
            self.running -= 1
            if not self.running:
                self._idle.set()

    def _admit(self) -> None:
        if self._draining:
            raise Draining("the provider is going away")
        if not self._ready:
            raise Overloaded("the engine is not ready yet", retry_after_seconds=2)
        limit = self._engine.capabilities().requests_max
        if limit and self.running >= limit:
            raise Overloaded(f"the provider serves {limit} requests already", retry_after_seconds=1)

    async def _serve(self, incoming: IncomingRequest) -> None:
        came_whole = incoming.inline
        if not came_whole:
            incoming.accept()
        with trio.move_on_after(BODY_SECONDS) as patience:
            body = await incoming.read_body()
        if patience.cancelled_caught:
            raise RequestTimeout(f"the upload took longer than {BODY_SECONDS:.0f} s")
        request, model = self._read(incoming, body)
        if came_whole:
            incoming.accept(model.digest)
        sink = StreamSink(incoming, self._metrics) if request.stream else WholeSink(incoming)
        await self._engine.stream(request, sink)
        if not sink.finished:
            raise EngineFailed("the engine ended without finishing the answer")

    def _read(self, incoming: IncomingRequest, body: bytes) -> tuple[EngineRequest, ModelInfo]:
        name, parameters = read_parameters(incoming.endpoint, body, self._limits)
        _, wanted = split_pinned(name)
        model = self._model(wanted)
        if incoming.endpoint not in model.endpoints:
            what = incoming.endpoint.name.lower()
            raise ModelNotFound(f"{wanted!r} does not serve {what} here", param="model")
        salt = hashlib.sha256(f"{incoming.peer}\0{incoming.public_id}".encode()).hexdigest()[:32]
        request = EngineRequest(
            request_id=incoming.request_id,
            endpoint=incoming.endpoint,
            model=model.name,
            body=parameters,
            stream=incoming.stream,
            salt=salt,
        )
        return request, model

    def _model(self, name: ModelName) -> ModelInfo:
        for model in self._engine.capabilities().models:
            if model.name == name:
                return model
        raise ModelNotFound(f"this provider does not serve {name!r}", param="model")
