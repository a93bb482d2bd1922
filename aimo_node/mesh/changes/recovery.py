"""After sleep, a stop or a change of networks: ask every link, and begin all back-offs anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
import trio

from aimo_node.mesh.changes.networks import watch_networks
from aimo_node.mesh.changes.wakefulness import TICK_SECONDS, Wakefulness
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.silence import check_links

log = structlog.get_logger()

_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)


class Recovery:
    """Watches clocks and networks. `run` is its life.

    Attributes:
        on_change: called, in order, when something has happened: whoever keeps something away from
            the network for a while adds what ends that.
    """

    def __init__(self, network: MeshNetwork) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._network = network
        self._happened = trio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_clocks)
            nursery.start_soon(watch_networks, self._network_changed)
            while True:
                await self._happened.wait()
                self._happened = trio.Event()
                await self._recover()

    async def _recover(self) -> None:
        for changed in self.on_change:
            changed()
        ended = await check_links(self._network)
        if ended:
            log.info("links.given_up", count=ended)

    async def _watch_clocks(self) -> None:
        wakefulness = Wakefulness(trio.current_time(), _boot_time())
        while True:
            await trio.sleep(TICK_SECONDS)
            away = wakefulness.look(trio.current_time(), _boot_time())
            if away:
                log.info("node.was_away", seconds=round(away, 1))
                self._happened.set()

    def _network_changed(self) -> None:
        log.info("network.changed")
        self._happened.set()


def _boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps: elsewhere than on Linux the wall
    clock, where setting it passes for sleep, which does no harm."""
    return time.time_ns() / 1e9 if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
