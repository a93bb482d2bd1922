"""The provider's side of a request: admit it, find its engine, stream the answer back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from aimo_node.dispatch.hosting import GIVEN_UP, EnginePlan, HostedEngine
from aimo_node.dispatch.metering import Bill, Meter
from aimo_node.dispatch.parameters import hold_to_limits, read_parameters
from aimo_node.dispatch.places import Place
from aimo_node.dispatch.prompt_counting import PromptCounter
from aimo_node.dispatch.quota import Quota
from aimo_node.dispatch.sinks import StreamSink, WholeSink
from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import ModelName, PeerId, split_pinned
from aimo_node.domain.models import EngineInfo, EngineState, Health, Load, ModelInfo
from aimo_node.errors import (
    CodedError,
    ConfigError,
    Draining,
    EngineFailed,
    EngineStartFailed,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
)
from aimo_node.ports.engine import EngineRequest
from aimo_node.ports.peer_network import QUEUE_HEADER, QUEUE_NO, IncomingRequest
from aimo_node.protocol import limits

log = structlog.get_logger()

BODY_SECONDS: Final = 60.0
"""How long an upload may take."""
DEADLINE_SECONDS_MAX: Final = 3_600.0
KINDS_MAX: Final = 64
"""What a descriptor takes of their names."""
RETIRE_SECONDS: Final = 30.0
"""What a removed engine may take to end its answers."""
HANDLED_MAX: Final = 8_192
"""Requests in hand, waiting ones included: above what any engine serves."""
RETRY_SECONDS: Final = 15.0
RETRY_SECONDS_MAX: Final = 600.0
"""Between tries to start an engine again that was given up, doubling up to the maximum."""
PAUSED_RETRY_SECONDS: Final = 60.0
"""Nobody knows how long an owner wants the machine; edges hear at once when it is back."""


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


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider offers at one moment.

    Attributes:
        models: what may be asked for now; of engines that have one of the same name, that of the
            first that has it loaded.
        kinds: of its engines, each once, separated by commas.
    """

    models: tuple[ModelInfo, ...]
    engines: tuple[EngineInfo, ...]
    kinds: str
    state: EngineState
    requests_max: int


class ProviderService:
    """Serves requests with the engines it was given. One per node that serves models.

    Attributes:
        meter: what peers used, and may use.
        paused: whether its owner wants no requests to be taken.
    """

    def __init__(self, own: PeerId, metrics: ServingMetrics, meter: Meter | None = None) -> None:
        """
        Args:
            own: this node, to whom alone owner-only engines answer.
            meter: without one there are no quotas.
        """
        self._own = own
        self._metrics = metrics
        self.meter = meter or Meter(own, Quota(), trio.current_time)
        self.paused = False
        self._engines: dict[str, HostedEngine] = {}
        self._nursery: trio.Nursery | None = None
        self._listeners: list[Callable[[], None]] = []
        self._draining = False
        self._waits: set[trio.CancelScope] = set()
        self._is_too_much = False
        self._idle = trio.Event()
        self._prompts = PromptCounter()
        self.running = 0

    @property
    def engines(self) -> Sequence[HostedEngine]:
        """In the order in which they were added."""
        return tuple(self._engines.values())

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the offer may have changed."""
        self._listeners.append(changed)

    def add(self, plan: EnginePlan) -> HostedEngine:
        """Take in an engine; it is started by `run`, at once if that runs already.

        Raises:
            ConfigError: its settings cannot work, or its label is taken.
        """
        if plan.label in self._engines:
            raise ConfigError(f"there is an engine called {plan.label} already")
        engine = self._engines[plan.label] = HostedEngine(plan, self._changed)
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, engine)
        return engine

    def remove(self, label: str) -> bool:
        """Forget an engine; what it is answering may end in time. False if there is none."""
        engine = self._engines.pop(label, None)
        if engine is None:
            return False
        if self._nursery is not None:
            self._nursery.start_soon(_retire, engine)
        self._changed()
        return True

    async def run(self) -> None:
        """Keep every engine alive until cancelled.

        Raises:
            EngineStartFailed: every essential engine was given up.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for engine in self._engines.values():
                    nursery.start_soon(self._keep, engine)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def wait_settled(self) -> None:
        """Return once every essential engine runs or has failed."""
        for engine in self.engines:
            if engine.plan.essential:
                await engine.settled.wait()

    async def _keep(self, engine: HostedEngine) -> None:
        """One engine's life; what was given up is tried again while others serve."""
        delay = RETRY_SECONDS
        try:
            with engine.life:
                while self._engines.get(engine.plan.label) is engine:
                    delay = await self._until_given_up(engine, delay)
        finally:
            engine.end()

    async def _until_given_up(self, engine: HostedEngine, delay: float) -> float:
        """Run it, and wait until it may be tried again; returns the next delay in seconds."""
        started = trio.current_time()
        try:
            await engine.run()
        except EngineStartFailed as error:
            if engine.plan.essential and not self._anybody_left():
                raise
            if trio.current_time() - started > RETRY_SECONDS_MAX:
                delay = RETRY_SECONDS  # it had lived
            log.warning(
                "engine.given_up",
                engine=engine.plan.label,
                reason=str(error),
                retry_in_seconds=delay,
            )
        await engine.wait_retry(delay)
        return min(RETRY_SECONDS_MAX, delay * 2)

    def _anybody_left(self) -> bool:
        essential = [engine for engine in self.engines if engine.plan.essential]
        return any(engine.state not in GIVEN_UP for engine in essential)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def offer(self, *, to_owner: bool = False) -> Offer:
        """What is offered now: to the mesh, or to the owner's own edge.

        A draining or paused provider offers what it did, and says that it stops.
        """
        shown = [engine for engine in self.engines if to_owner or not engine.owner_only]
        models: dict[ModelName, ModelInfo] = {}
        for engine in _loaded_first(shown):
            for model in engine.offered():
                models.setdefault(model.name, model)
        if len(models) > limits.DESCRIPTOR_MODELS_MAX and not self._is_too_much:
            self._is_too_much = True
            log.warning("offer.cut", models=len(models), models_max=limits.DESCRIPTOR_MODELS_MAX)
        return Offer(
            models=tuple(models.values())[: limits.DESCRIPTOR_MODELS_MAX],
            engines=tuple(engine.info() for engine in shown[: limits.DESCRIPTOR_ENGINES_MAX]),
            kinds=",".join(dict.fromkeys(engine.plan.kind for engine in shown))[:KINDS_MAX],
            state=self._state(shown),
            requests_max=_sum_of_limits(shown),
        )

    def _state(self, engines: Sequence[HostedEngine]) -> EngineState:
        if self._draining or self.paused:
            return EngineState.STOPPING  # with any other, what loads on demand would be asked
        states = [engine.state for engine in engines]
        if any(engine.offered() for engine in engines):
            return EngineState.RUNNING
        return min(states, key=_STATES_BEST_FIRST.index, default=EngineState.STOPPED)

    def health(self) -> Health:
        """Whether new requests should come: as healthy as the best engine."""
        if self._draining or self.paused:
            return Health.OFFLINE
        return min((engine.health for engine in self.engines), default=Health.OFFLINE)

    def load(self) -> Load:
        """How busy all engines together are."""
        loads = [engine.load() for engine in self.engines]
        limit = _sum_of_limits(self.engines)
        running = sum(load.running for load in loads)
        share = running / limit if limit else max((load.load for load in loads), default=0.0)
        known = [load.first_token_seconds for load in loads if load.first_token_seconds]
        return Load(
            load=min(1.0, max(share, min((load.load for load in loads), default=0.0))),
            running=running,
            waiting=sum(load.waiting for load in loads),
            kv_used=max((load.kv_used for load in loads), default=0.0),
            prefix_hits=max((load.prefix_hits for load in loads), default=0.0),
            first_token_seconds=sum(known) / len(known) if known else 0.0,
        )

    def drain(self) -> None:
        """Take no new requests, and send those elsewhere that have not begun."""
        self._draining = True
        self._send_elsewhere()

    def pause(self) -> None:
        """As `drain`, until `resume`; engines stay as they are."""
        self.paused = True
        self._send_elsewhere()
        self._changed()

    def resume(self) -> None:
        """Take requests again."""
        self.paused = False
        self._changed()

    def _send_elsewhere(self) -> None:
        for scope in self._waits:
            scope.cancel()

    async def wait_idle(self) -> None:
        """Return when no request is running."""
        while self.running:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    async def handle(self, incoming: IncomingRequest) -> None:
        """One request from admission to its end; errors become Error frames.

        Raises:
            CodedError: refused or failed; the link tells the edge.
        """
        self._admit()
        bill = self.meter.open(incoming.peer)
        self.running += 1
        endpoint = incoming.endpoint.name.lower()
        started = trio.current_time()
        outcome = "cancelled"
        self._metrics.request_started(endpoint)
        try:
            with trio.fail_after(min(incoming.deadline_ms / 1000, DEADLINE_SECONDS_MAX)):
                await self._serve(incoming, bill)
            outcome = "ok"
        except trio.TooSlowError as error:
            outcome = RequestTimeout.code.name
            raise RequestTimeout("the request's deadline has passed") from error
        except CodedError as error:
            outcome = error.code.name
            raise
        finally:
            bill.close()
            self._metrics.request_ended(endpoint, outcome, trio.current_time() - started)
            self.running -= 1
            if not self.running:
                self._idle.set()

    def _admit(self) -> None:
        self._check_open()
        if not self._engines:
            raise ModelNotFound("this node serves no models", param="model")
        if self.running >= HANDLED_MAX:
            raise Overloaded("the provider is at its limit", retry_after_seconds=1)
        if not any(engine.offered() for engine in self.engines):
            raise Overloaded("the engine is not ready yet", retry_after_seconds=2)

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the provider is going away")
        self._check_not_paused()

    def _check_not_paused(self) -> None:
        if self.paused:
            raise Draining(
                "the provider is paused by its owner", retry_after_seconds=PAUSED_RETRY_SECONDS
            )

    async def _serve(self, incoming: IncomingRequest, bill: Bill) -> None:
        came_whole = incoming.inline
        if not came_whole:
            incoming.accept()
        with trio.move_on_after(BODY_SECONDS) as patience:
            body = await incoming.read_body()
        if patience.cancelled_caught:
            raise RequestTimeout(f"the upload took longer than {BODY_SECONDS:.0f} s")
        self._check_not_paused()  # meanwhile: it would load what was unloaded for the pause
        engine, model, request = self._read(incoming, body)
        may_wait = incoming.headers.get(QUEUE_HEADER) != QUEUE_NO
        place = engine.take_place(may_wait=may_wait)
        try:
            if came_whole:
                incoming.accept(model.digest, place.position)
            if place.position or not engine.is_loaded:
                await self._wait(engine, place)
            sink = StreamSink(incoming, self._metrics) if request.stream else WholeSink(incoming)
            await self._stream(engine, request, sink, bill)
        finally:
            place.leave()
        if sink.usage is None:
            raise EngineFailed("the engine ended without finishing the answer")

    async def _stream(
        self,
        engine: HostedEngine,
        request: EngineRequest,
        sink: StreamSink | WholeSink,
        bill: Bill,
    ) -> None:
        """Have it answered, and settle the bill however that ends."""
        refused = False
        try:
            await engine.stream(request, sink)
        except CodedError:
            refused = not sink.produced
            raise
        finally:
            if sink.usage is not None:
                bill.settle(request.model, sink.usage)
            elif not refused:
                bill.settle(request.model, Usage(completion_tokens=sink.produced))
                if self._nursery is not None:
                    self._prompts.start(self._nursery, engine, request, bill)

    async def _wait(self, engine: HostedEngine, place: Place) -> None:
        """For a place, and for the engine to be loaded.

        Raises:
            Draining: the provider goes away or is paused; who has not begun is answered sooner
                elsewhere.
        """
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await place.wait()
                await engine.wait_loaded()
            finally:
                self._waits.discard(scope)
        if scope.cancelled_caught:
            self._check_open()
            raise Draining("the provider was paused for a moment")

    def _read(
        self, incoming: IncomingRequest, body: bytes
    ) -> tuple[HostedEngine, ModelInfo, EngineRequest]:
        name, parameters = read_parameters(incoming.endpoint, body)
        _, wanted = split_pinned(name)
        engine, model = self._find(wanted, incoming.peer)
        if incoming.endpoint not in model.endpoints:
            what = incoming.endpoint.name.lower()
            raise ModelNotFound(f"{wanted!r} does not serve {what} here", param="model")
        hold_to_limits(incoming.endpoint, parameters, engine.plan.limits)
        salt = hashlib.sha256(f"{incoming.peer}\0{incoming.public_id}".encode()).hexdigest()[:32]
        request = EngineRequest(
            request_id=incoming.request_id,
            endpoint=incoming.endpoint,
            model=model.name,
            body=parameters,
            stream=incoming.stream,
            salt=salt,
        )
        return engine, model, request

    def _find(self, name: ModelName, asked_by: PeerId) -> tuple[HostedEngine, ModelInfo]:
        for engine in _loaded_first(self.engines):
            model = engine.model(name)
            if model is not None and (not engine.owner_only or asked_by == self._own):
                return engine, model
        raise ModelNotFound(f"this provider does not serve {name!r}", param="model")


async def _retire(engine: HostedEngine) -> None:
    with trio.move_on_after(RETIRE_SECONDS):
        await engine.places.wait_idle()
    engine.life.cancel()


def _loaded_first(engines: Sequence[HostedEngine]) -> Sequence[HostedEngine]:
    return sorted(engines, key=lambda engine: engine.state is not EngineState.RUNNING)


_STATES_BEST_FIRST: Final = (
    EngineState.RUNNING,
    EngineState.STARTING,
    EngineState.DOWNLOADING,
    EngineState.INSTALLED,
    EngineState.STOPPING,
    EngineState.STOPPED,
    EngineState.ERROR,
    EngineState.NOT_INSTALLED,
)


def _sum_of_limits(engines: Sequence[HostedEngine]) -> int:
    """Requests at a time; 0 as soon as one engine has no limit."""
    limits = [engine.places.limit for engine in engines if engine.offered()]
    return sum(limits) if all(limits) else 0
