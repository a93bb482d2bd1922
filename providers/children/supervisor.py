"""Keeps one child process alive: start, probe, restart with back-off, give up, end."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import structlog
import trio

from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import EngineStartFailed
from aimo_node.ports.engine import Progress
from providers.children.process import ChildProcess

_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child counts as dead, and how often it is started again.

    Attributes:
        deaths_max: in a row, each before `stable_seconds` of life; one more and we give up.
        delay_seconds: before the first restart; doubles with each death, up to the maximum.
        probes_failed_max: in a row; a process that runs but does not answer is killed.
    """

    deaths_max: int = 5
    delay_seconds: float = 0.5
    delay_seconds_max: float = 30.0
    stable_seconds: float = 60.0
    probe_every_seconds: float = 5.0
    probe_timeout_seconds: float = 5.0
    probes_failed_max: int = 3


class Charge(Protocol):
    """What a supervisor looks after."""

    name: str

    async def launch(self) -> ChildProcess:
        """Start the process.

        Raises:
            EngineStartFailed: the system refuses.
        """

    async def wait_ready(self, child: ChildProcess, progress: Progress) -> str:
        """Wait until the process can answer; else a phrase saying why it will not."""

    async def probe(self, timeout_seconds: float) -> bool:
        """Whether it answers in time."""

    def up(self) -> None:
        """It can answer now."""

    def down(self) -> None:
        """It is gone; remove what it left."""

    def explain(self, ending: str) -> str:
        """One sentence about a process that ended so; names the fix if there is one."""


class Supervisor:
    """One child after another, for one engine.

    Attributes:
        state: STARTING also between a death and the next start.
    """

    def __init__(self, charge: Charge, policy: RestartPolicy, chance: random.Random) -> None:
        self.state = EngineState.STOPPED
        self._charge = charge
        self._policy = policy
        self._chance = chance
        self._child: ChildProcess | None = None
        self._probes_failed = 0
        self._scope = trio.CancelScope()
        self._was_ready = False

    @property
    def health(self) -> Health:
        """HEALTHY when it answers, DEGRADED when silent, OFFLINE when it is not running."""
        if self.state is not EngineState.RUNNING:
            return Health.OFFLINE
        return Health.DEGRADED if self._probes_failed else Health.HEALTHY

    async def run(self, progress: Progress) -> None:
        """Keep the child alive until cancelled or killed.

        Raises:
            EngineStartFailed: the first start failed, or it died too often.
        """
        try:
            with self._scope:
                await self._live_on(progress)
        except EngineStartFailed:
            self.state = EngineState.ERROR
            raise
        finally:
            if self.state is not EngineState.ERROR:
                self.state = EngineState.STOPPED

    def kill(self) -> None:
        """End the child at once and start no other; idempotent, also before and after `run`."""
        self._scope.cancel()
        if self._child is not None:
            self._child.kill()
        if self.state is not EngineState.ERROR:
            self.state = EngineState.STOPPED

    async def _live_on(self, progress: Progress) -> NoReturn:
        deaths = 0
        while True:
            born = trio.current_time()
            ending = await self._one_life(progress)
            if not self._was_ready:
                raise EngineStartFailed(self._charge.explain(ending))
            lived_seconds = trio.current_time() - born
            deaths = 1 if lived_seconds >= self._policy.stable_seconds else deaths + 1
            await self._mourn(deaths, ending)

    async def _one_life(self, progress: Progress) -> str:
        """Start one child and see it through; how it ended."""
        self.state = EngineState.STARTING
        self._probes_failed = 0
        child = self._child = await self._charge.launch()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.copy_log)
                ending = await self._charge.wait_ready(child, progress)
                if not ending:
                    ending = await self._service(child)
                child.kill()  # the log then ends, and with it the nursery
        finally:
            if self.state is EngineState.RUNNING:
                self.state = EngineState.STARTING
            await child.end()
            self._child = None
            self._charge.down()
        return ending

    async def _service(self, child: ChildProcess) -> str:
        """From ready to the end of the child."""
        self.state = EngineState.RUNNING
        self._was_ready = True
        self._charge.up()
        ending = ""
        async with trio.open_nursery() as race:

            async def probe_until_hung() -> None:
                nonlocal ending
                ending = await self._probe_until_hung()
                race.cancel_scope.cancel()

            race.start_soon(probe_until_hung)
            ending = await child.wait()
            race.cancel_scope.cancel()
        return ending

    async def _probe_until_hung(self) -> str:
        policy = self._policy
        while self._probes_failed < policy.probes_failed_max:
            await trio.sleep(policy.probe_every_seconds)
            answered = await self._charge.probe(policy.probe_timeout_seconds)
            self._probes_failed = 0 if answered else self._probes_failed + 1
        return f"did not answer {self._probes_failed} probes in a row"

    async def _mourn(self, deaths: int, ending: str) -> None:
        """Wait before the next start, longer after each death."""
        policy = self._policy
        if deaths > policy.deaths_max:
            raise EngineStartFailed(
                f"gave up after {deaths} deaths in a row; {self._charge.explain(ending)}"
            )
        delay = min(policy.delay_seconds_max, policy.delay_seconds * 2 ** (deaths - 1))
        delay *= self._chance.uniform(0.5, 1.0)
        _log.warning(
            "engine.died",
            engine=self._charge.name,
            ending=ending,
            deaths=deaths,
            restart_in_seconds=round(delay, 2),
        )
        await trio.sleep(delay)
