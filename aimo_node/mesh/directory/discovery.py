"""The edge's ear: what relays say of providers, and what its own links show, into the table."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.models import Descriptor
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.directory.checking import DescriptorChecker
from aimo_node.mesh.directory.warming import WarmLinks
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol.descriptors import status_of
from aimo_node.protocol.frames import Directory, Subscribe
from aimo_node.protocol.session import Announcement
from aimo_node.routing.table import RoutingTable

log = structlog.get_logger()

CHECKS_MAX: Final = 12_000
CHECKS_PER_SECOND: Final = 200.0
"""Signatures checked for one relay, 100 µs each: the whole directory of a large mesh at once, and
then its changes."""


class Discovery(IdleObserver):
    """Feeds the routing table, and has links to the first providers kept warm."""

    def __init__(
        self,
        network: MeshNetwork,
        table: RoutingTable,
        models: tuple[str, ...] = (),
        *,
        relays: Container[PeerId],
        own: PeerId | None = None,
    ) -> None:
        """
        Args:
            models: what to subscribe to; empty for all.
            relays: whose directory is believed, besides that of `own`: not everybody's who says it
                is a relay. May change; `look` says when.
            own: this node, if it tells the table of itself: then nobody else may, and its link to
                itself says nothing. None learns of this node as of any other.
        """
        self._network = network
        self._table = table
        self._models = list(models)
        self._relays = relays
        self._own = own
        self._asked: set[Link] = set()
        self._allowances: dict[PeerId, Allowance] = {}
        self._checker = DescriptorChecker()
        self._warm_links = WarmLinks(network, table)

    async def run(self) -> None:
        """Keep links warm until cancelled."""
        await self._warm_links.run()

    def link_opened(self, link: Link) -> None:
        """Ask a relay for its directory; note a provider's link."""
        self._ask(link)
        if link.peer != self._own:  # whatever roles it names: a node can become a provider later
            self._table.linked(link.peer, link.path, trio.current_time())

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A provider's link is gone; a relay's providers stay until they expire."""
        self._asked.discard(link)
        if link.peer != self._own:
            self._table.unlinked(link.peer)
        self._warm_links.look()

    def link_changed(self, link: Link) -> None:
        """A provider became suspect, recovered or drains."""
        if link.peer != self._own:
            self._table.link_state(
                link.peer, suspect=link.session.suspect, draining=link.session.remote_draining
            )

    def announced(self, link: Link, frame: Announcement) -> None:
        """A relay's batch; from anybody else it is ignored."""
        if isinstance(frame, Directory) and self._is_relay(link):
            self.learn(link.peer, frame)

    def look(self) -> None:
        """Others may count as relays now."""
        for link in self._network.links():
            self._ask(link)

    def retry_now(self) -> None:
        """Dial providers that could not be reached again, at once."""
        self._warm_links.retry_now()

    def _ask(self, link: Link) -> None:
        if self._is_relay(link) and link not in self._asked:
            self._asked.add(link)
            link.announce(Subscribe(self._models))

    def _is_relay(self, link: Link) -> bool:
        is_known = link.peer in self._relays or link.peer == self._network.peer
        return Role.RELAY in link.roles and is_known

    def _may_check(self, source: PeerId, now: float) -> bool:
        allowance = self._allowances.get(source)
        if allowance is None:
            allowance = self._allowances[source] = Allowance(CHECKS_MAX, CHECKS_PER_SECOND, now)
        return allowance.take(now)

    def learn(self, source: PeerId, batch: Directory) -> None:
        """Take in a batch of `source`; one bad descriptor spoils only itself."""
        now = trio.current_time()
        if batch.full:
            self._table.restart(source, now)
        for frame in batch.descriptors:
            if not self._checker.knows(frame) and not self._may_check(source, now):
                log.warning("relay.too_talkative", source=source)
                break
            try:
                descriptor = self._checker.check(frame)
            except RemoteProtocolError as error:
                log.warning("descriptor.refused", source=source, reason=str(error))
                continue
            if descriptor.peer != self._own:
                self._describe(source, descriptor, now)
        for heartbeat in batch.statuses:
            if heartbeat.node_id != self._own:
                self._table.report(source, status_of(heartbeat), now)
        for gone in batch.gone:
            self._table.forget(source, PeerId(gone))

    def _describe(self, source: PeerId, descriptor: Descriptor, now: float) -> None:
        if self._table.describe(source, descriptor, now):
            self._warm_links.locate(descriptor.peer, descriptor.addresses)
            link = self._network.link(descriptor.peer)
            if link is not None:
                self._table.linked(link.peer, link.path, now)
                self.link_changed(link)
