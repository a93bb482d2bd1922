"""An engine whose upstream is somebody else's: probed, never restarted; its life and its health."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import structlog
import trio

from aimo_node.domain.models import Health, Load
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import EngineRequest, Progress
from providers.admission import Admission

PROBES_FAILED_MAX: Final = 6
"""After so many in a row the upstream counts as gone, until it answers again."""

CLOSE_SECONDS: Final = 1.0
"""What closing idle connections may take."""

_log: Final = structlog.get_logger()


class ProbedEngine(ABC):
    """What every such engine has of `aimo_node.ports.engine.Engine`.

    Args:
        requests_max: concurrent requests.

    Attributes:
        name: of the engine, for the mesh and the log.
    """

    name: ClassVar[str]

    def __init__(self, requests_max: int) -> None:
        self._admission = Admission(requests_max)
        self._alive = False
        self._probes_failed = 0
        self._scope = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Find the models at the upstream, then probe it until cancelled.

        `ready` is called again whenever the upstream changes what is offered.

        Raises:
            EngineStartFailed: no answer for some time, no access, or it has no such model.
        """
        try:
            with self._scope:
                await self._live(ready, progress)
        finally:
            self.kill()
            with trio.move_on_after(CLOSE_SECONDS) as scope:
                scope.shield = True
                await self._aclose()

    async def count_tokens(self, request: EngineRequest) -> int:
        """Not offered, unless the upstream has a call for it.

        Raises:
            EngineFailed: always.
        """
        raise EngineFailed(f"the upstream of {request.model} does not count tokens")

    def health(self) -> Health:
        """By the last probes; OFFLINE also before `run` and after `kill`."""
        if not self._alive or self._probes_failed >= PROBES_FAILED_MAX:
            return Health.OFFLINE
        return Health.DEGRADED if self._probes_failed else Health.HEALTHY

    def load(self) -> Load:
        """Share of the places taken by this node."""
        return self._admission.load()

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Close every request's socket; idempotent. The upstream itself goes on."""
        self._alive = False
        self._scope.cancel()
        for scope in self._requests:
            scope.cancel()

    @abstractmethod
    async def _start(self, progress: Progress) -> None:
        """Learn what is offered.

        Raises:
            EngineStartFailed.
        """

    @abstractmethod
    async def _pause(self) -> None:
        """Wait until the next probe is due."""

    @abstractmethod
    async def _probe(self) -> tuple[bool, bool]:
        """Whether the upstream is well, and whether something else is offered than before."""

    @abstractmethod
    async def _aclose(self) -> None:
        """Close idle connections."""

    async def _live(self, ready: Callable[[], None], progress: Progress) -> None:
        await self._start(progress)
        self._alive = True
        ready()
        while True:
            await self._pause()
            before = self.health()
            well, changed = await self._probe()
            self._probes_failed = 0 if well else self._probes_failed + 1
            if self.health() is not before:
                _log.warning("engine.health", engine=self.name, health=self.health().text)
            if changed:
                ready()

    def _check_alive(self) -> None:
        if not self._alive:
            raise EngineFailed("the engine is not running")

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Hold a place for one request, which ends when the engine is killed.

        Raises:
            Draining, Overloaded: see `Admission.request`.
            EngineFailed: it was killed.
        """
        with self._admission.request():
            with trio.CancelScope() as scope:
                self._requests.add(scope)
                try:
                    yield
                finally:
                    self._requests.discard(scope)
            if scope.cancelled_caught:
                raise EngineFailed("the engine was stopped")
