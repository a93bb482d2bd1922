"""One engine under a provider's roof: started, watched, unloaded when idle, loaded on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
import trio

from aimo_node.dispatch.parameters import OwnerLimits
from aimo_node.dispatch.places import Place, Places
from aimo_node.domain.ids import ModelName
from aimo_node.domain.models import EngineInfo, EngineState, Health, Load, ModelInfo
from aimo_node.errors import ConfigError, EngineFailed, EngineStartFailed, Overloaded
from aimo_node.ports.engine import AnswerSink, Capabilities, Engine, EngineRequest

log = structlog.get_logger()

UNLOAD_SECONDS: Final = 30.0
"""What an engine that is unloaded may take to end its answers."""
LOAD_SECONDS_MAX: Final = 600.0
"""How long a request waits for its model to be loaded: vLLM compiles for minutes."""
DETAIL_CHARACTERS_MAX: Final = 500
GIVEN_UP: Final = frozenset({EngineState.ERROR, EngineState.NOT_INSTALLED})
_ENDED: Final = GIVEN_UP | {EngineState.STOPPING, EngineState.STOPPED}


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What a provider knows of an engine before it runs.

    Attributes:
        label: names it within its provider and in logs.
        kind: which engine it is, such as ``vllm``.
        make: makes one engine object; each is run once.
        idle_seconds: unloaded after so long without a request; 0 never.
        models: names of what it will serve, as far as they are known before it runs.
        essential: the provider ends when all of these have been given up.
    """

    label: str
    kind: str
    make: Callable[[], Engine]
    idle_seconds: float = 0.0
    waiting_max: int = 0
    limits: OwnerLimits = field(default_factory=OwnerLimits)
    models: tuple[ModelName, ...] = ()
    essential: bool = True


class HostedEngine:
    """See the module; `run` is its life, the rest may be called from any task.

    Attributes:
        plan: what was configured.
        detail: the latest news of its start, or why it was given up.
        life: cancelled when it is removed.
    """

    def __init__(self, plan: EnginePlan, changed: Callable[[], None]) -> None:
        self.plan = plan
        self.detail = ""
        self.places = Places(plan.waiting_max)
        self.settled = trio.Event()
        """Set once it runs, has failed or was unloaded for the first time."""
        self.life = trio.CancelScope()
        self._changed = changed
        # The first one is made at once: wrong settings are to be seen before anything starts.
        self._next: Engine | None = plan.make()
        self._engine: Engine | None = None
        self._capabilities: Capabilities | None = None
        self._state = EngineState.STOPPED
        self._loads = 0
        self._is_over = False
        self._used_at = 0.0
        self._news = trio.Event()
        self._wanted = trio.Event()
        self._unload = trio.Event()
        self._quiet = trio.Event()
        self._streams = 0
        self._starts_unloaded = False

    @property
    def state(self) -> EngineState:
        """Where it is in its life; a loaded engine that is being restarted is STARTING."""
        if self._state is EngineState.RUNNING and not self._answers():
            return EngineState.STARTING
        return self._state

    @property
    def is_loaded(self) -> bool:
        """Whether a request can begin; it may fail, where the engine is being restarted."""
        return self._state is EngineState.RUNNING

    @property
    def health(self) -> Health:
        """Whether new requests should come."""
        if not self.offered():
            return Health.OFFLINE
        if self._engine is not None and self.is_loaded:
            return self._engine.health()
        return Health.HEALTHY  # a request loads it

    @property
    def owner_only(self) -> bool:
        """Whether nobody but the owner's own edge may know of it."""
        return self._capabilities is not None and self._capabilities.owner_only

    @property
    def version(self) -> str:
        """Of the program behind it, as far as is known."""
        return self._capabilities.version if self._capabilities is not None else ""

    def offered(self) -> tuple[ModelInfo, ...]:
        """The models that may be asked for now: it answers, or a request would load it."""
        if self._capabilities is None or self._state in GIVEN_UP or self._is_over:
            return ()
        if self._state is EngineState.RUNNING:
            return self._capabilities.models if self._answers() else ()
        if not self.plan.idle_seconds:
            return ()
        return tuple(replace(model, state=self._state) for model in self._capabilities.models)

    def info(self) -> EngineInfo:
        """What others may see of it."""
        offered = self._capabilities.models if self._capabilities is not None else None
        names = self.plan.models if offered is None else tuple(model.name for model in offered)
        return EngineInfo(self.plan.label, self.plan.kind, self.state, names, self.places.limit)

    def load(self) -> Load:
        """How busy: its own account, what this node has sent it, and who waits here."""
        own = self._engine.load() if self._engine is not None else Load()
        running = max(own.running, self.places.running)
        share = running / self.places.limit if self.places.limit else own.load
        waiting = own.waiting + self.places.waiting
        return replace(own, load=min(1.0, max(own.load, share)), running=running, waiting=waiting)

    def model(self, name: ModelName) -> ModelInfo | None:
        """The model of that name, if it may be asked for."""
        return next((model for model in self.offered() if model.name == name), None)

    def take_place(self, *, may_wait: bool = True) -> Place:
        """A place for one request, or one in the queue.

        Raises:
            Overloaded: it is not ready, or there is no place and none to wait in.
        """
        if not self.offered():
            raise Overloaded("the engine is not ready", retry_after_seconds=2)
        return self.places.take(may_wait=may_wait)

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """Answer, once the engine is loaded; see `Engine.stream`."""
        engine = await self.wait_loaded()
        self._streams += 1
        try:
            await engine.stream(request, sink)
        finally:
            self._streams -= 1
            self._used_at = trio.current_time()
            if not self._streams:
                self._quiet.set()

    async def count_tokens(self, request: EngineRequest) -> int:
        """See `Engine.count_tokens`; an engine that is not loaded is not loaded for that.

        Raises:
            CodedError: it cannot be counted.
        """
        if self._engine is None or self._state is not EngineState.RUNNING:
            raise EngineFailed("the engine is not loaded")
        return await self._engine.count_tokens(request)

    def start_unloaded(self) -> None:
        """When it is run, do not load it before it is wanted."""
        self._starts_unloaded = True

    def want(self) -> None:
        """Load it as for a request; nothing happens if it is."""
        self._used_at = trio.current_time()
        self._wanted.set()

    async def wait_retry(self, seconds: float) -> None:
        """Return after `seconds`, or when somebody wants it before.

        What its owner unloads meanwhile is not tried by itself.
        """
        with trio.move_on_after(seconds):
            await self._wanted.wait()
        if self._state is EngineState.STOPPED:
            await self._wanted.wait()

    async def load_now(self) -> None:
        """Load it for its owner.

        Raises:
            EngineStartFailed: it cannot be loaded, or was unloaded or removed meanwhile.
        """
        awaited = self._loads + (self._state in _ENDED)
        self.want()
        while self._state is not EngineState.RUNNING:
            if self._is_over or (self._state in _ENDED and self._loads >= awaited):
                has_failed = self._state in GIVEN_UP
                raise EngineStartFailed(self.detail if has_failed else "it was unloaded meanwhile")
            await self._news.wait()

    async def unload_now(self) -> None:
        """Unload it for its owner; what it is answering may end in time."""
        loads = self._loads
        self._unload.set()
        if self._state in GIVEN_UP:
            self._enter(EngineState.STOPPED, "unloaded")
        # a request that came meanwhile may have it loaded again already
        while self._state is not EngineState.STOPPED and self._state not in GIVEN_UP:
            if self._loads != loads:
                return
            await self._news.wait()

    async def run(self) -> None:
        """Load it, unload it when idle, load it again when wanted; until cancelled.

        Raises:
            EngineStartFailed: it cannot be loaded, or died too often.
        """
        try:
            if self._starts_unloaded:
                self._starts_unloaded = False
                self.settled.set()
                await self._wanted.wait()
            while True:
                await self._one_load()
                log.info("engine.unloaded", engine=self.plan.label)
                self._enter(EngineState.STOPPED, "unloaded")
                self.settled.set()
                await self._wanted.wait()
        except EngineStartFailed as error:
            self._wanted = trio.Event()
            given_up = EngineState.NOT_INSTALLED if error.not_installed else EngineState.ERROR
            self._enter(given_up, str(error))
            self.settled.set()
            raise

    def end(self) -> None:
        """Nobody runs it any more: who waits for it is told."""
        self._is_over = True
        self._enter(self._state if self._state in GIVEN_UP else EngineState.STOPPED, self.detail)

    async def _one_load(self) -> None:
        """From loading to the end of its use."""
        self._loads += 1
        self._unload = trio.Event()
        self._enter(EngineState.STARTING, "")
        engine = self._make()
        failure: EngineStartFailed | None = None

        async def look_after() -> None:
            nonlocal failure
            failure = await self._life_of(engine)
            nursery.cancel_scope.cancel()

        self._engine = engine
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_after)
                await self._until_unload()
                self._wanted = trio.Event()
                self._enter(EngineState.STOPPING, "")
                with trio.move_on_after(UNLOAD_SECONDS):
                    while self._streams:
                        self._quiet = trio.Event()
                        await self._quiet.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._engine = None
        # one that dies while it is unloaded is unloaded
        if failure is not None and self._state is not EngineState.STOPPING:
            raise failure

    def _make(self) -> Engine:
        engine, self._next = self._next, None
        try:
            return engine if engine is not None else self.plan.make()
        except ConfigError as error:  # what was there at the start, such as a key file, is gone
            raise EngineStartFailed(str(error)) from error

    async def _life_of(self, engine: Engine) -> EngineStartFailed:
        """Run it to its end, which is why it ended."""
        failure: EngineStartFailed | None = None
        try:
            await engine.run(self._on_ready, self._on_progress)
        except* EngineStartFailed as group:  # engines have nurseries of their own
            failure = first_of(group)
        except* Exception:  # the root of an engine, which may be somebody else's
            log.exception("engine.crashed", engine=self.plan.label)
            failure = EngineStartFailed("the engine crashed: the node's log says where")
        return failure or EngineStartFailed("the engine ended by itself")

    async def _until_unload(self) -> None:
        """Return when its owner wants it unloaded, or nobody has wanted it for a while."""
        idle_seconds = self.plan.idle_seconds or math.inf
        while True:
            now = trio.current_time()
            is_busy = bool(self.places.running or self.places.waiting)
            is_unused = self._state is EngineState.RUNNING and not is_busy
            idle_at = (self._used_at if is_unused else now) + idle_seconds
            if idle_at <= now:
                return
            with trio.move_on_at(idle_at):
                await self._unload.wait()
                return

    async def wait_loaded(self) -> Engine:
        """The engine, once it can answer.

        Raises:
            EngineFailed: it cannot be loaded.
            Overloaded: it was unloaded by its owner, and is not loaded on demand.
        """
        with trio.move_on_after(LOAD_SECONDS_MAX):
            while self._state is not EngineState.RUNNING:
                if self._state in GIVEN_UP:
                    raise EngineFailed("the engine could not be loaded")
                if not self.offered():  # its owner unloaded it while the request was queued
                    raise Overloaded("the engine is not ready", retry_after_seconds=2)
                self.want()
                await self._news.wait()
        if self._engine is None or self._state is not EngineState.RUNNING:
            raise EngineFailed(f"the engine was not loaded within {LOAD_SECONDS_MAX:.0f} s")
        return self._engine

    def _answers(self) -> bool:
        return self._engine is not None and self._engine.health() is not Health.OFFLINE

    def _on_ready(self) -> None:
        if self._engine is None or self._state is EngineState.STOPPING:
            return
        before, self._capabilities = self._capabilities, self._engine.capabilities()
        self.places.resize(self._capabilities.requests_max)
        self._used_at = trio.current_time()
        if self._state is EngineState.RUNNING and before != self._capabilities:
            self._changed()
        self._enter(EngineState.RUNNING, "")
        self.settled.set()

    def _on_progress(self, line: str, state: EngineState = EngineState.STARTING) -> None:
        log.info("engine.starting", engine=self.plan.label, progress=line, state=state.text)
        if self._state not in {EngineState.RUNNING, EngineState.STOPPING}:
            self._enter(state, line)

    def _enter(self, state: EngineState, detail: str) -> None:
        is_news = state is not self._state
        self._state, self.detail = state, detail[:DETAIL_CHARACTERS_MAX]
        news, self._news = self._news, trio.Event()
        news.set()
        if is_news:
            self._changed()


def first_of(group: BaseExceptionGroup[EngineStartFailed]) -> EngineStartFailed:
    """The first error in a group of them."""
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner
