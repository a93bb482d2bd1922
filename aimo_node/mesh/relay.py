"""The relay role: keeps the directory of providers and tells edges and other relays."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.mesh.checking import DescriptorChecker
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import limits
from aimo_node.protocol.directory import DirectoryBook
from aimo_node.protocol.frames import Descriptor, Directory, Heartbeat, Subscribe
from aimo_node.protocol.session import Announcement

log = structlog.get_logger()

GATHER_SECONDS: Final = 0.05
"""News that comes together is told together."""


class RelayDirectory(IdleObserver):
    """One relay's directory: fed by providers and relays, read by edges."""

    def __init__(self, network: MeshNetwork) -> None:
        self.book = DirectoryBook(network.peer)
        self._own = network.peer
        self._checker = DescriptorChecker()
        self._wanted: dict[Link, frozenset[str]] = {}
        self._told: dict[Link, int] = {}
        """The book's revision a subscriber has seen."""
        self._news = trio.Event()

    async def run(self) -> None:
        """Tell subscribers what is new: soon, but each at most once a second; until cancelled."""
        while True:
            with trio.move_on_after(limits.DIRECTORY_SECONDS):
                await self._news.wait()
            await trio.sleep(GATHER_SECONDS)
            self._news = trio.Event()
            self.book.expire(trio.current_time())
            for link in list(self._wanted):
                self._tell(link)
            await trio.sleep(limits.DIRECTORY_SECONDS - GATHER_SECONDS)

    def _tell(self, link: Link) -> None:
        told = self._told.get(link)
        if told == self.book.revision:
            return
        for batch in self.book.batches(told or 0, self._wanted[link]):
            link.announce(batch)
        self._told[link] = self.book.revision

    def announced(self, link: Link, frame: Announcement) -> None:
        """A provider speaks for itself, an edge asks; everything else is ignored."""
        if isinstance(frame, Subscribe):
            self._wanted[link] = frozenset(frame.models)
            self._told.pop(link, None)
            self._tell(link)
        elif isinstance(frame, Descriptor):
            self._describe(link.peer, link.peer, frame)
        elif isinstance(frame, Heartbeat) and frame.node_id == link.peer:
            self.book.beat(self._own, frame, trio.current_time())
        self._news.set()

    def _describe(self, source: PeerId, provider: PeerId | None, frame: Descriptor) -> None:
        try:
            descriptor = self._checker.check(frame)
        except RemoteProtocolError as error:
            log.warning("descriptor.refused", source=source, reason=str(error))
            return
        if provider is None:
            self.book.describe(source, frame, descriptor, trio.current_time())
        elif provider == descriptor.peer:
            self.book.describe(self._own, frame, descriptor, trio.current_time())
        else:
            log.warning("descriptor.refused", source=source, reason="speaks for somebody else")

    def learn(self, relay: PeerId, batch: Directory) -> None:
        """Take in what another relay published."""
        for frame in batch.descriptors:
            self._describe(relay, None, frame)
        now = trio.current_time()
        for heartbeat in batch.statuses:
            self.book.beat(relay, heartbeat, now)
        for gone in batch.gone:
            self.book.leave(relay, PeerId(gone))
        self._news.set()

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A provider that leaves is gone at once; a subscriber is forgotten."""
        self._wanted.pop(link, None)
        self._told.pop(link, None)
        self.book.leave(self._own, link.peer)
        self._news.set()

    def link_opened(self, link: Link) -> None:
        """A relay that links to us is a source from now on."""
        if Role.RELAY in link.roles:
            log.info("relay.linked", relay=link.peer)
