"""Links to peers: dials, accepts, keeps one per peer. Satisfies `ports.peer_network`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.links import LinkFacts
from aimo_node.errors import CloseCode, Draining, NetworkError, PermissionDenied
from aimo_node.mesh.dials import Dials
from aimo_node.mesh.exchange import LinkExchange
from aimo_node.mesh.link import ByteStream, Link, LinkObserver
from aimo_node.mesh.link_facts import facts_of
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.pipe import open_pipe
from aimo_node.mesh.rivals import hand_over, is_upgrade, retire, survivor
from aimo_node.ports.peer_network import OutgoingRequest, RequestHandler
from aimo_node.protocol import limits
from aimo_node.protocol.handshake import Doorkeeper
from aimo_node.protocol.session import Announcement, Session

log = structlog.get_logger()

OPEN_SECONDS: Final = limits.HELLO_SECONDS + 1.0
"""From an open stream to an accepted Hello; the session's own deadline comes first."""
LOOK_SECONDS: Final = 0.02
"""How often a drain looks whether the last bytes have gone: only at the end of a node's life."""
ADDRESSES_PER_PEER_MAX: Final = limits.DESCRIPTOR_ADDRESSES_MAX
PEERS_MAX: Final = 20_000
"""Peers whose addresses are remembered; as many as a routing table holds."""
LINKS_PER_PEER_MAX: Final = 8
"""Links of one peer that have not ended: those it lost may carry requests until they count as
dead."""
HANG_UP_SECONDS: Final = 1.0
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

    def __init__(self, admission: Doorkeeper, handler: RequestHandler | None = None) -> None:
        self.peer = admission.peer
        self._admission = admission
        self._handler = handler
        self._observers: list[LinkObserver] = []
        self._dialer: Dialer | None = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[PeerId, Link] = {}
        self._living: set[Link] = set()
        """Every link that has not ended, also those that are not open yet or were replaced."""
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self.dials = Dials(self._dial, self._hang_up)
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
        if sum(link.peer == stream.peer for link in self._living) >= LINKS_PER_PEER_MAX:
            log.info("link.refused", peer=stream.peer, reason="too many links")
            await stream.reset()
            return
        await self._live(self._make_link(stream))

    def remember(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Where a peer can be dialled, from now on."""
        self._addresses.pop(peer, None)
        if len(self._addresses) >= PEERS_MAX:
            del self._addresses[next(iter(self._addresses))]  # the one named longest ago
        self._addresses[peer] = tuple(addresses[:ADDRESSES_PER_PEER_MAX])

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Where a peer can be dialled, too; tried before what was known."""
        known = self._addresses.get(peer, ())
        self.remember(peer, tuple(dict.fromkeys([*addresses, *known])))

    def forget(self, peer: PeerId) -> None:
        """The peer has left the mesh."""
        self._addresses.pop(peer, None)

    def links(self) -> Iterator[Link]:
        """The open links."""
        return iter(list(self._links.values()))

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        return self._links.get(peer)

    def living(self) -> Iterator[Link]:
        """Every link that has not ended, also those that were replaced and still serve."""
        return iter(list(self._living))

    def rights(self, peer: PeerId) -> Role:
        """The roles a peer may act in: none without a link that admits it now."""
        link = self._links.get(peer)
        return link.rights if link is not None else Role.NONE

    def link_facts(self, peer: PeerId) -> LinkFacts | None:
        """See `ports.peer_network.PeerNetwork`."""
        link = self._links.get(peer)
        return None if link is None else facts_of(link)

    async def connect(self, peer: PeerId) -> Link:
        """The link to a peer, dialled if there is none.

        Safe to cancel: the dial goes on for the others who wait for it, and for whoever comes next.

        Raises:
            NetworkError: it cannot be reached.
            PermissionDenied: one side does not admit the other: another mesh or secret.
            Draining: it takes no new requests.
        """
        link = self._usable(peer)
        if link is not None:
            return link
        if self._nursery is None:
            raise NetworkError("the node is not running")
        return await self.dials.join(peer, self._nursery)

    async def adopt(self, stream: ByteStream) -> bool:
        """Open a link on a stream to a peer that is linked already over a worse path.

        Returns:
            Whether it has taken the place of the old one, which ends once nothing runs on it.
        """
        if self._nursery is None:
            await stream.reset()
            return False
        link = self._make_link(stream)
        self._nursery.start_soon(self._live, link)
        with trio.move_on_after(OPEN_SECONDS):
            await link.settled.wait()
        if self._links.get(link.peer) is link:
            return True
        link.close()
        return False

    async def open_exchange(self, peer: PeerId, request: OutgoingRequest) -> LinkExchange:
        """See `ports.peer_network.PeerNetwork`."""
        link = self._usable(peer)
        if link is None:
            try:
                link = await self.connect(peer)
            except PermissionDenied as error:
                raise NetworkError(error.message) from error
        if peer != self.peer and Role.PROVIDER not in link.rights:
            raise NetworkError(f"the certificate of {peer} is not for the role provider")
        return link.open_exchange(request)

    @property
    def certified(self) -> bool:
        """Whether members show certificates rather than know a secret."""
        return self._admission.one_sided

    @property
    def draining(self) -> bool:
        """Whether the node is going away."""
        return self._draining

    def drain(self) -> None:
        """Take no new requests on any link; running ones finish."""
        self._draining = True
        for link in self.links():
            link.drain()

    async def wait_idle(self) -> None:
        """Return when no request runs on any link and what they said has been handed on.

        An answer can be complete long before its last bytes have left: they wait for credit.
        """
        while any(link.session.busy for link in self._living):  # noqa: ASYNC110 (see LOOK_SECONDS)
            await trio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """End all links with a GoAway and wait until they have gone."""
        links = list(self._living)
        # with the link to a relay end the circuits, and what is on its way on them
        for group in ([one for one in links if one.path == "circuit"], links):
            for link in group:
                link.close(CloseCode.Normal, "the node is shutting down")
            for link in group:
                await link.ended.wait()

    def statistics(self) -> NetworkStatistics:
        """A snapshot."""
        links = list(self._links.values())
        return NetworkStatistics(
            links_open=len(links),
            bytes_in=self._past_bytes[0] + sum(link.bytes_in for link in links),
            bytes_out=self._past_bytes[1] + sum(link.bytes_out for link in links),
        )

    def links_by_path(self) -> dict[str, int]:
        """How many links are open over which path; each path is named, those without links too."""
        counts = dict.fromkeys(("direct", "circuit", "local"), 0)
        for link in self._links.values():
            counts[link.path] = counts.get(link.path, 0) + 1
        return counts

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
            link = kept
            if await self._is_welcome(link):
                return link
        link.close()
        message = f"peer {link.peer}: {link.close_message or 'no Hello in time'}"
        if link.close_code in _REFUSED:
            raise PermissionDenied(message)
        raise NetworkError(message)

    async def _is_welcome(self, link: Link) -> bool:
        """Whether the peer admits us: a refusal arrives before the answer to a Ping."""
        if not self._admission.one_sided:
            return True
        if not link.welcome.is_set():
            link.probe()
        with trio.move_on_after(OPEN_SECONDS):
            await link.welcome.wait()
        return link.welcome.is_set() and not link.closed.is_set()

    async def _wait_other(self, peer: PeerId) -> None:
        """The peer kept the link it opened itself; its Hello may still be on its way."""
        with trio.move_on_after(OPEN_SECONDS):
            while peer not in self._links:
                await self._link_made.wait()

    def _loopback(self, nursery: trio.Nursery) -> Link:
        """A link of this node to itself, so that its roles talk as if they were apart."""
        asking_end, serving_end = open_pipe(self.peer, self.peer)
        now = trio.current_time()
        asking_end.path = serving_end.path = "local"
        asking_end.reason = serving_end.reason = "this node itself"
        asking = Link(asking_end, Session(self._admission, self.peer, now), self)
        serving = Link(
            serving_end,
            Session(self._admission, self.peer, now),
            _ServingEnd(self),
            handler=self._handler,
        )
        nursery.start_soon(self._live, serving)
        nursery.start_soon(self._live, asking)
        return asking

    def _make_link(self, stream: ByteStream) -> Link:
        session = Session(self._admission, stream.peer, trio.current_time())
        if self._draining:
            session.drain()
        return Link(
            stream, session, self, handler=self._handler, is_needed=self._may_carry_circuits
        )

    def _may_carry_circuits(self, link: Link) -> bool:
        """Whether links of this node run through the peer: they end with the link to it."""
        is_way = link.path == "direct" and Role.RELAY in link.roles
        return is_way and any(other.path == "circuit" for other in self._living)

    async def _live(self, link: Link) -> None:
        self._living.add(link)
        try:
            await link.run()
        except Exception:  # the root of a link's task: it must not take the node down
            log.exception("link.crashed", peer=link.peer)
        finally:
            self._living.discard(link)
            await self._hang_up(link.peer)

    async def _hang_up(self, peer: PeerId) -> None:
        """Without a link the connection is of no use."""
        is_used = peer in self.dials or any(link.peer == peer for link in self._living)
        if peer != self.peer and not is_used:
            await self.disconnect(peer)

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        if self._dialer is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(HANG_UP_SECONDS):
                await self._dialer.disconnect(peer)

    def link_opened(self, link: Link) -> None:
        """Keep one link for each peer: see `docs/protocol/v1.md`, "Both dial at once"."""
        other = self._links.get(link.peer)
        if other is not None and other is not link:
            if survivor(self.peer, other, link) is other:
                retire(link)
                return
            if is_upgrade(other, link) and self._nursery is not None:
                self._nursery.start_soon(hand_over, other)
            else:
                retire(other)
            self._leave(other)
        self._links[link.peer] = link
        self._link_made.set()
        self._link_made = trio.Event()
        how = {"path": link.path, "reason": link.reason}
        log.info("link.opened", peer=link.peer, **how, roles=link.roles.names)
        for observer in self._observers:
            observer.link_opened(link)

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
        said = "lost" if link.is_lost else code.name
        log.info("link.closed", peer=link.peer, code=said, reason=message)
        for observer in self._observers:
            observer.link_closed(link, code, message)

    def link_changed(self, link: Link) -> None:
        """A peer became suspect, recovered or drains."""
        if self._links.get(link.peer) is link:
            for observer in self._observers:
                observer.link_changed(link)

    def announced(self, link: Link, frame: Announcement) -> None:
        """A frame that stands alone arrived; nothing is heard over a link that was replaced."""
        if self._links.get(link.peer) is link:
            self.pass_on(link, frame)

    def pass_on(self, link: Link, frame: Announcement) -> None:
        """Tell the observers."""
        for observer in self._observers:
            observer.announced(link, frame)


class _ServingEnd(IdleObserver):
    """Passes on what arrives at the far end of the link to ourselves, and nothing else."""

    def __init__(self, network: MeshNetwork) -> None:
        self._network = network

    def announced(self, link: Link, frame: Announcement) -> None:
        """The relay role hears the other roles."""
        self._network.pass_on(link, frame)
