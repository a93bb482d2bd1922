"""The relay role: keeps the directory of providers and tells edges and other relays."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.directory.checking import DescriptorChecker
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import limits
from aimo_node.protocol.directory import EXPIRY_SECONDS, DirectoryBook
from aimo_node.protocol.frames import Descriptor, Directory, Heartbeat, Subscribe
from aimo_node.protocol.session import Announcement

log = structlog.get_logger()

GATHER_SECONDS: Final = 0.05
"""News that comes together is told together."""
NEWS_SECONDS: Final = 0.25
"""Who comes and goes is told this often at most; how busy they are, every `DIRECTORY_SECONDS`."""
ANNOUNCEMENTS_MAX: Final = 64
ANNOUNCEMENTS_PER_SECOND: Final = 8.0
"""From one peer, each up to 100 µs of work: a provider says something every five seconds, and at
most twice a second while its engine comes and goes."""
RELAYS_MAX: Final = 256
"""Other relays listened to at a time: each may report every provider."""


class RelayDirectory(IdleObserver):
    """One relay's directory: fed by providers and relays, read by edges."""

    def __init__(self, network: MeshNetwork) -> None:
        self.book = DirectoryBook(network.peer)
        self._own = network.peer
        self._checker = DescriptorChecker()
        self._wanted: dict[Link, frozenset[str]] = {}
        self._told: dict[Link, int] = {}
        """The book's revision a subscriber has seen."""
        self._allowances: dict[Link, Allowance] = {}
        self._relays: dict[PeerId, float] = {}
        """When each other relay was last heard."""
        self._news = trio.Event()

    async def run(self) -> None:
        """Tell subscribers what is new until cancelled: who is there soon, the rest each second."""
        while True:
            with trio.move_on_after(limits.DIRECTORY_SECONDS - NEWS_SECONDS):
                await self._news.wait()
            await trio.sleep(GATHER_SECONDS)
            self._news = trio.Event()
            now = trio.current_time()
            self.book.expire(now)
            silent = [one for one, heard in self._relays.items() if now - heard > EXPIRY_SECONDS]
            for relay in silent:
                del self._relays[relay]
            for link in list(self._wanted):
                self._tell(link)
            await trio.sleep(NEWS_SECONDS - GATHER_SECONDS)

    def _tell(self, link: Link) -> None:
        told = self._told.get(link)
        if told == self.book.revision:
            return
        for batch in self.book.batches(told or 0, self._wanted[link]):
            link.announce(batch)
        self._told[link] = self.book.revision

    def announced(self, link: Link, frame: Announcement) -> None:
        """A provider speaks for itself, an edge asks; everything else is ignored."""
        allowance = self._allowances.get(link)  # none for this node's own roles
        if allowance is not None and not allowance.take(trio.current_time()):
            log.warning("peer.cut_off", peer=link.peer, reason="announces too much")
            link.close(CloseCode.TooManyRequests, "announces too much")
            return
        if isinstance(frame, Subscribe):
            is_new = link not in self._wanted
            self._wanted[link] = frozenset(frame.models)
            self._told.pop(link, None)
            if is_new:  # who asks again is told with the others: a whole directory is work
                self._tell(link)
        elif isinstance(frame, Descriptor):
            self._describe(link.peer, link.peer, frame)
            self._news.set()
        elif isinstance(frame, Heartbeat) and frame.node_id == link.peer:
            self.book.beat(self._own, frame, trio.current_time())

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
        """Take in what another relay published; ignored if too many do."""
        now = trio.current_time()
        if relay not in self._relays and len(self._relays) >= RELAYS_MAX:
            return
        self._relays[relay] = now
        for frame in batch.descriptors:
            self._describe(relay, None, frame)
        for heartbeat in batch.statuses:
            self.book.beat(relay, heartbeat, now)
        for gone in batch.gone:
            self.book.leave(relay, PeerId(gone))
        if batch.descriptors or batch.gone:
            self._news.set()

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A provider that leaves is gone at once; a subscriber is forgotten."""
        self._wanted.pop(link, None)
        self._told.pop(link, None)
        self._allowances.pop(link, None)
        self.book.leave(self._own, link.peer)
        self._news.set()

    def link_opened(self, link: Link) -> None:
        """Bound what the peer may announce."""
        now = trio.current_time()
        self._allowances[link] = Allowance(ANNOUNCEMENTS_MAX, ANNOUNCEMENTS_PER_SECOND, now)
        if Role.RELAY in link.roles:
            log.info("relay.linked", relay=link.peer)
