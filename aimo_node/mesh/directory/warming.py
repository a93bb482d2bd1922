"""Where providers are, and the links an edge opens to them before anybody asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.domain.models import Health
from aimo_node.errors import AimoError
from aimo_node.mesh.circuits.client import is_circuit
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.silence import end_silent
from aimo_node.routing.table import RoutingTable

log = structlog.get_logger()

WARM_LINKS_MAX: Final = 64
"""Providers an edge keeps a link to; further ones are dialled on demand."""
WARMING_MAX: Final = 8
"""Dials at a time, so that a mesh full of unreachable providers costs little."""
RETRY_SECONDS: Final = 1.0
"""From one dial of a provider to the next; doubles with each failure in a row."""
RETRY_SECONDS_MAX: Final = 60.0


def _own(addresses: Sequence[str]) -> list[str]:
    """Where the peer itself is: circuits come and go with its relays."""
    return [address for address in addresses if not is_circuit(address)]


@dataclass(slots=True)
class _Dialled:
    """When a provider may be dialled again, and how often it failed in a row."""

    again_at: float
    failures: int = 0


class WarmLinks:
    """Keeps links to the first providers of a table, and opens them again when they are lost.

    `run` is its life.
    """

    def __init__(self, network: MeshNetwork, table: RoutingTable) -> None:
        self._network = network
        self._table = table
        self._located: dict[PeerId, tuple[str, ...]] = {}
        self._dialled: dict[PeerId, _Dialled] = {}
        self._dialling: set[PeerId] = set()
        self._moved: set[PeerId] = set()
        self._news = trio.Event()

    def locate(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A provider in the table can be dialled there, until it leaves the table."""
        known, before = self._dialled.get(peer), self._located.get(peer)
        if before is not None and _own(before) != _own(addresses):
            self._moved.add(peer)  # a link to where it was would seem alive for a while
        if known is not None and before != tuple(addresses):
            known.failures = 0  # what failed was another way
            known.again_at = min(known.again_at, trio.current_time() + RETRY_SECONDS)
        self._located[peer] = tuple(addresses)
        self._network.remember(peer, addresses)
        self.look()

    def look(self) -> None:
        """The table or the links have changed."""
        self._news.set()

    def retry_now(self) -> None:
        """What failed may do now, as after a change of networks: begin anew, at once."""
        self._dialled.clear()
        self.look()

    async def run(self) -> None:
        """Dial who has no link, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(RETRY_SECONDS):
                    await self._news.wait()
                self._news = trio.Event()
                self._forget_departed()
                if self._moved:
                    links = [self._network.link(peer) for peer in self._moved]
                    self._moved.clear()
                    nursery.start_soon(end_silent, self._network, [one for one in links if one])
                for peer in self._due(trio.current_time()):
                    self._dialling.add(peer)
                    nursery.start_soon(self._warm, peer)

    def _forget_departed(self) -> None:
        departed = {peer for peer in self._located if self._table.get(peer) is None}
        for peer in departed:
            del self._located[peer]
            self._network.forget(peer)
            self._dialled.pop(peer, None)

    def _due(self, now: float) -> list[PeerId]:
        if self._network.draining:
            return []  # its idle links end now, and shall
        linked = sum(entry.linked for entry in self._table)
        room = min(WARM_LINKS_MAX - linked, WARMING_MAX) - len(self._dialling)
        return [peer for peer, _ in zip(self._cold(now), range(room), strict=False)]

    def _cold(self, now: float) -> Iterator[PeerId]:
        for entry in self._table:
            known = self._dialled.get(entry.peer)
            rests = entry.peer in self._dialling or (known is not None and now < known.again_at)
            if not entry.linked and not rests and entry.health is not Health.OFFLINE:
                yield entry.peer

    async def _warm(self, peer: PeerId) -> None:
        failures = self._dialled[peer].failures if peer in self._dialled else 0
        try:
            await self._network.connect(peer)
            failures = 0
        except AimoError as error:
            failures += 1
            log.debug("provider.not_linked", provider=peer, reason=str(error))
        finally:
            self._dialling.discard(peer)
        pause = min(RETRY_SECONDS * 2.0 ** min(failures, 10), RETRY_SECONDS_MAX)
        if peer in self._located:
            self._dialled[peer] = _Dialled(trio.current_time() + pause, failures)
        self.look()
