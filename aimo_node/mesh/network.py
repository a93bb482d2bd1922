"""Links to peers: dials, accepts, keeps one per peer. Satisfies `ports.peer_network`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode, Draining, NetworkError, PermissionDenied
from aimo_node.mesh.exchange import LinkExchange
from aimo_node.mesh.link import ByteStream, Link, LinkObserver
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.pipe import open_pipe
from aimo_node.ports.peer_network import OutgoingRequest, RequestHandler
from aimo_node.protocol import limits
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Announcement, Session

log = structlog.get_logger()

OPEN_SECONDS: Final = limits.HELLO_SECONDS + 1.0
"""From an open stream to an accepted Hello; the session's own deadline comes first."""
LOOK_SECONDS: Final = 0.02
"""How often a drain looks whether the last bytes have gone: only at the end of a node's life."""
ADDRESSES_PER_PEER_MAX: Final = limits.DESCRIPTOR_ADDRESSES_MAX
PEERS_MAX: Final = 20_000
"""Peers whose addresses are remembered; as many as a routing table holds."""
_REFUSED: Final = frozenset({CloseCode.WrongMesh, CloseCode.NotAdmitted, CloseCode.VersionMismatch})


class Dialer(Protocol):
    """What the network needs from the libp2p host."""

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> ByteStream:
        """Open the link stream to a peer. Raises NetworkError."""

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to a peer."""


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """A snapshot of what the links carried since the start."""

    links_open: int
    bytes_in: int
    bytes_out: int


class MeshNetwork:
    """The links of this node. `run` is their life; everything else is called from any task."""

    def __init__(self, admission: Admission, handler: RequestHandler | None = None) -> None:
        self.peer = admission.peer
        self._admission = admission
        self._handler = handler
        self._observers: list[LinkObserver] = []
        self._dialer: Dialer | None = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[PeerId, Link] = {}
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._past_bytes = [0, 0]
        self._draining = False
        self._link_made = trio.Event()
        self.running = trio.Event()
        """Set once links can be dialled."""

    def add_observer(self, observer: LinkObserver) -> None:
        """Tell `observer` about links from now on."""
        self._observers.append(observer)

    async def run(self, dialer: Dialer) -> None:
        """Keep links alive until cancelled."""
        self._dialer = dialer
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.running.set()
            await trio.sleep_forever()

    async def accept(self, stream: ByteStream) -> None:
        """Live on a stream that a peer opened, until it ends."""
        await self._live(self._make_link(stream))

    def remember(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Where a peer can be dialled, from now on."""
        if peer in self._addresses or len(self._addresses) < PEERS_MAX:
            self._addresses[peer] = tuple(addresses[:ADDRESSES_PER_PEER_MAX])

    def forget(self, peer: PeerId) -> None:
        """The peer has left the mesh."""
        self._addresses.pop(peer, None)

    def links(self) -> Iterator[Link]:
        """The open links."""
        return iter(list(self._links.values()))

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        return self._links.get(peer)

    async def connect(self, peer: PeerId) -> Link:
        """The link to a peer, dialled if there is none.

        Raises:
            NetworkError: it cannot be reached.
            PermissionDenied: one side does not admit the other: another mesh or secret.
            Draining: it takes no new requests.
        """
        link = self._usable(peer)
        if link is not None:
            return link
        lock = self._dialling.setdefault(peer, trio.Lock())
        try:
            async with lock:
                return self._usable(peer) or await self._dial(peer)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._dialling.pop(peer, None)

    async def open_exchange(self, peer: PeerId, request: OutgoingRequest) -> LinkExchange:
        """See `ports.peer_network.PeerNetwork`."""
        link = self._usable(peer)
        if link is None:
            try:
                link = await self.connect(peer)
            except PermissionDenied as error:
                raise NetworkError(error.message) from error
        return link.open_exchange(request)

    def drain(self) -> None:
        """Take no new requests on any link; running ones finish."""
        self._draining = True
        for link in self.links():
            link.drain()

    async def wait_idle(self) -> None:
        """Return when no request runs on any link and what they said has been handed on.

        An answer can be complete long before its last bytes have left: they wait for credit.
        """
        while any(link.session.busy for link in self.links()):
            await trio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """End all links with a GoAway and wait until they have gone."""
        links = list(self.links())
        for link in links:
            link.close(CloseCode.Normal, "the node is shutting down")
        for link in links:
            await link.ended.wait()

    def statistics(self) -> NetworkStatistics:
        """A snapshot."""
        links = list(self._links.values())
        return NetworkStatistics(
            links_open=len(links),
            bytes_in=self._past_bytes[0] + sum(link.bytes_in for link in links),
            bytes_out=self._past_bytes[1] + sum(link.bytes_out for link in links),
        )

    def _usable(self, peer: PeerId) -> Link | None:
        link = self._links.get(peer)
        if link is not None and link.draining:
            raise Draining("the provider is going away")
        return link

    async def _dial(self, peer: PeerId) -> Link:
        if self._nursery is None or self._dialer is None:
            raise NetworkError("the node is not running")
        if peer == self.peer:
            return await self._open(self._loopback(self._nursery))
        addresses = self._addresses.get(peer)
        if not addresses:
            raise NetworkError(f"no address is known for peer {peer}")
        stream = await self._dialer.dial(peer, addresses)
        link = self._make_link(stream)
        self._nursery.start_soon(self._live, link)
        return await self._open(link)

    async def _open(self, link: Link) -> Link:
        with trio.move_on_after(OPEN_SECONDS):
            await link.settled.wait()
        if link.close_code is CloseCode.DuplicateLink:
            await self._wait_other(link.peer)
        kept = self._links.get(link.peer)
        if kept is not None:
            return kept
        link.close()
        message = f"peer {link.peer}: {link.close_message or 'no Hello in time'}"
        if link.close_code in _REFUSED:
            raise PermissionDenied(message)
        raise NetworkError(message)

    async def _wait_other(self, peer: PeerId) -> None:
        """The peer kept the link it opened itself; its Hello may still be on its way."""
        with trio.move_on_after(OPEN_SECONDS):
            while peer not in self._links:
                await self._link_made.wait()

    def _loopback(self, nursery: trio.Nursery) -> Link:
        """A link of this node to itself, so that its roles talk as if they were apart."""
        asking_end, serving_end = open_pipe(self.peer, self.peer)
        now = trio.current_time()
        asking = Link(asking_end, Session(self._admission, self.peer, now), self, path="local")
        serving = Link(
            serving_end,
            Session(self._admission, self.peer, now),
            _ServingEnd(self),
            handler=self._handler,
            path="local",
        )
        nursery.start_soon(serving.run)
        nursery.start_soon(self._live, asking)
        return asking

    def _make_link(self, stream: ByteStream) -> Link:
        session = Session(self._admission, stream.peer, trio.current_time())
        if self._draining:
            session.drain()
        return Link(stream, session, self, handler=self._handler)

    async def _live(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._dialer is not None and link.peer != self.peer:
                await self._hang_up(self._dialer, link.peer)

    async def _hang_up(self, dialer: Dialer, peer: PeerId) -> None:
        """Without a link the connection is of no use."""
        if peer not in self._links:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await dialer.disconnect(peer)

    def link_opened(self, link: Link) -> None:
        """Keep one link for each peer: see `docs/protocol/v1.md`, "Both dial at once"."""
        other = self._links.get(link.peer)
        if other is not None and other is not link:
            keep = self._survivor(other, link)
            self._retire(other if keep is link else link)
            if keep is other:
                return
            self._leave(other)
        self._links[link.peer] = link
        self._link_made.set()
        self._link_made = trio.Event()
        log.info("link.opened", peer=link.peer, path=link.path, roles=link.roles.names)
        for observer in self._observers:
            observer.link_opened(link)

    def _survivor(self, old: Link, new: Link) -> Link:
        """Of two links opened from both ends the one that the smaller peer id opened; of two opened
        from the same end the new one, since its opener must have lost the old one."""
        if old.stream.initiator == new.stream.initiator:
            return new
        ours_survives = self.peer < old.peer
        return old if old.stream.initiator == ours_survives else new

    def _retire(self, link: Link) -> None:
        if link.session.busy:
            link.drain()
        else:
            link.close(CloseCode.DuplicateLink, "there is another link between us")

    def _leave(self, link: Link) -> None:
        for observer in self._observers:
            observer.link_closed(link, link.close_code, "replaced")

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A link has ended."""
        self._past_bytes[0] += link.bytes_in
        self._past_bytes[1] += link.bytes_out
        if self._links.get(link.peer) is not link:
            log.debug("link.refused", peer=link.peer, code=code.name, reason=message)
            return
        del self._links[link.peer]
        log.info("link.closed", peer=link.peer, code=code.name, reason=message)
        for observer in self._observers:
            observer.link_closed(link, code, message)

    def link_changed(self, link: Link) -> None:
        """A peer became suspect, recovered or drains."""
        if self._links.get(link.peer) is link:
            for observer in self._observers:
                observer.link_changed(link)

    def announced(self, link: Link, frame: Announcement) -> None:
        """A frame that stands alone arrived."""
        for observer in self._observers:
            observer.announced(link, frame)


class _ServingEnd(IdleObserver):
    """Passes on what arrives at the far end of the link to ourselves, and nothing else."""

    def __init__(self, network: MeshNetwork) -> None:
        self._network = network

    def announced(self, link: Link, frame: Announcement) -> None:
        """The relay role hears the other roles."""
        self._network.announced(link, frame)
