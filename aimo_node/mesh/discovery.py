"""The edge's ear: what relays say of providers, and what its own links show, into the table."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import AimoError, CloseCode, RemoteProtocolError
from aimo_node.mesh.checking import DescriptorChecker
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol.descriptors import status_of
from aimo_node.protocol.frames import Directory, Subscribe
from aimo_node.protocol.session import Announcement
from aimo_node.routing.table import RoutingTable

log = structlog.get_logger()

WARM_LINKS_MAX: Final = 64
"""Providers an edge keeps a link to before anybody asks; the others are dialled on demand."""
WARMING_MAX: Final = 8
"""Dials at a time while warming up."""
RETRY_SECONDS: Final = 5.0


class Discovery(IdleObserver):
    """Feeds the routing table and keeps links to the first providers warm."""

    def __init__(
        self, network: MeshNetwork, table: RoutingTable, models: tuple[str, ...] = ()
    ) -> None:
        """`models`: what to subscribe to; empty for all."""
        self._network = network
        self._table = table
        self._models = list(models)
        self._checker = DescriptorChecker()
        self._cold: OrderedDict[PeerId, None] = OrderedDict()
        self._work = trio.Event()

    async def run(self) -> None:
        """Warm links up until cancelled."""
        slots = trio.CapacityLimiter(WARMING_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._cold:
                    peer, _ = self._cold.popitem(last=False)
                    await slots.acquire_on_behalf_of(peer)
                    nursery.start_soon(self._warm, peer, slots)

    async def _warm(self, peer: PeerId, slots: trio.CapacityLimiter) -> None:
        try:
            await self._network.connect(peer)
        except AimoError as error:
            log.debug("provider.not_linked", provider=peer, reason=str(error))
        finally:
            slots.release_on_behalf_of(peer)

    def link_opened(self, link: Link) -> None:
        """Ask a relay for its directory; note a provider's link."""
        if Role.RELAY in link.roles:
            link.announce(Subscribe(self._models))
        if Role.PROVIDER in link.roles:
            self._table.linked(link.peer, link.path, trio.current_time())

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A provider's link is gone; a relay's providers stay until they expire."""
        self._table.unlinked(link.peer)

    def link_changed(self, link: Link) -> None:
        """A provider became suspect, recovered or drains."""
        self._table.link_state(
            link.peer, suspect=link.session.suspect, draining=link.session.remote_draining
        )

    def announced(self, link: Link, frame: Announcement) -> None:
        """A relay's batch; from anybody else it is ignored."""
        if isinstance(frame, Directory) and Role.RELAY in link.roles:
            self.learn(link.peer, frame)

    def learn(self, source: PeerId, batch: Directory) -> None:
        """Take in a batch of `source`; one bad descriptor spoils only itself."""
        now = trio.current_time()
        if batch.full:
            self._table.restart(source, now)
        for frame in batch.descriptors:
            try:
                descriptor = self._checker.check(frame)
            except RemoteProtocolError as error:
                log.warning("descriptor.refused", source=source, reason=str(error))
                continue
            if self._table.describe(source, descriptor, now):
                self._network.remember(descriptor.peer, descriptor.addresses)
                self._note(descriptor.peer, now)
        for heartbeat in batch.statuses:
            self._table.report(source, status_of(heartbeat), now)
        for gone in batch.gone:
            self._table.forget(source, PeerId(gone))

    def _note(self, peer: PeerId, now: float) -> None:
        link = self._network.link(peer)
        if link is not None:
            self._table.linked(peer, link.path, now)
        elif len(self._cold) < WARM_LINKS_MAX and len(self._table) <= WARM_LINKS_MAX:
            self._cold[peer] = None
            self._work.set()
