"""How relays become known: each says where it is, and passes on what it heard of those it links."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.errors import CloseCode, InvalidMessageFormat, RemoteProtocolError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.circuits.client import is_circuit
from aimo_node.mesh.identity import KeyPair, public_key_from_peer_id, sign
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.relays.book import RelayBook
from aimo_node.protocol import frames, limits
from aimo_node.protocol.relays import announce_relay, read_relay
from aimo_node.protocol.session import Announcement
from aimo_node.protocol.signing import relay_bytes_to_sign

log = structlog.get_logger()

LOOK_SECONDS: Final = 5.0
"""How long it may take until a relay notices that it has other addresses."""
NEWS_MAX: Final = 64
NEWS_PER_SECOND: Final = 1.0
"""Relays one link may tell of, 100 µs each to check: all of a mesh a few times over, then few. What
is news goes on to every link, so this bounds that, too."""


@dataclass(frozen=True, slots=True)
class OwnRelay:
    """What a node that is a relay itself says of itself.

    Attributes:
        incarnation: number of this run.
        addresses: where it can be dialled now, the best first.
    """

    identity: KeyPair
    incarnation: int
    addresses: Callable[[], Sequence[str]]


class RelayNews(IdleObserver):
    """Feeds the book with what relays say; at a relay, says it and passes it on."""

    def __init__(self, network: MeshNetwork, book: RelayBook, own: OwnRelay | None = None) -> None:
        """`own`: None for a node that is no relay; it only listens."""
        self._network = network
        self._book = book
        self._own = own
        self._seen: tuple[str, ...] = ()
        self._revision = 0
        self._signed: frames.Relay | None = None
        self._known: dict[PeerId, frames.Relay] = {}
        """As other relays signed it, to be passed on."""
        self._allowances: dict[Link, Allowance] = {}

    async def run(self) -> None:
        """Tell everybody when this relay has other addresses, until cancelled."""
        while self._own is not None:
            if self._refresh() and self._signed is not None:
                self._tell([self._signed])
            await trio.sleep(LOOK_SECONDS)

    def link_opened(self, link: Link) -> None:
        """Whoever comes is told of every relay there is."""
        if self._own is None or link.peer == self._network.peer:
            return
        if self._signed is None:
            self._refresh()
        relays = [] if self._signed is None else [self._signed]
        for peer, signed in list(self._known.items()):
            if peer not in self._book:
                del self._known[peer]
            elif peer != link.peer and self._network.link(peer) is not None:
                relays.append(signed)
        if relays:
            news = relays[: limits.DIRECTORY_RELAYS_MAX]
            link.announce(frames.Directory(full=False, relays=news))

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """Nothing to bound any more."""
        self._allowances.pop(link, None)

    def announced(self, link: Link, frame: Announcement) -> None:
        """A relay's news; from anybody else it is ignored."""
        if isinstance(frame, frames.Directory) and frame.relays and self._believes(link):
            for relay in frame.relays:
                if not self._may_tell(link):
                    log.warning("relay.too_talkative", source=link.peer)
                    return
                self._learn(link, relay)

    def _believes(self, link: Link) -> bool:
        """A relay believes who links to it as one: membership says who may. Others believe those
        that they know already, since anybody could link to them and say so."""
        if Role.RELAY not in link.roles or link.peer == self._network.peer:
            return False
        return self._own is not None or link.peer in self._book

    def _learn(self, link: Link, signed: frames.Relay) -> None:
        try:
            announcement = _checked(signed)
        except (RemoteProtocolError, InvalidMessageFormat) as error:
            log.warning("relay.refused", source=link.peer, reason=str(error))
            return
        is_new = announcement.peer not in self._book
        is_news = self._book.learn(announcement, time.time_ns() // 1_000_000)
        if is_new and is_news:
            log.info("relay.learned", relay=announcement.peer, source=link.peer)
        known = self._book.get(announcement.peer)
        if self._own is None or known is None or known.version != announcement.version:
            return
        self._known[announcement.peer] = signed
        if is_news or announcement.peer == link.peer:  # it is back: who came meanwhile missed it
            self._tell([signed], but=announcement.peer)

    def _may_tell(self, link: Link) -> bool:
        now = trio.current_time()
        allowance = self._allowances.get(link)
        if allowance is None:
            allowance = self._allowances[link] = Allowance(NEWS_MAX, NEWS_PER_SECOND, now)
        return allowance.take(now)

    def _tell(self, relays: list[frames.Relay], but: PeerId | None = None) -> None:
        batch = frames.Directory(full=False, relays=relays)
        for link in self._network.links():
            if link.peer not in {but, self._network.peer}:
                link.announce(batch)

    def _refresh(self) -> bool:
        """Sign anew if the addresses are not what they were; whether that was so."""
        if self._own is None:
            return False
        addresses = [one for one in self._own.addresses() if not is_circuit(one)]
        first = tuple(addresses[: limits.RELAY_ADDRESSES_MAX])
        if first == self._seen or not first:
            return False
        self._seen = first
        self._revision += 1
        own = self._own
        body = announce_relay(
            RelayAnnouncement(own.identity.peer_id, own.incarnation, self._revision, first)
        )
        self._signed = frames.Relay(body, sign(own.identity, relay_bytes_to_sign(body)))
        return True


def _checked(signed: frames.Relay) -> RelayAnnouncement:
    """What a relay said.

    Raises:
        RemoteProtocolError: malformed, or not signed by the relay it tells of.
        InvalidMessageFormat: its peer id holds no key.
    """
    announcement = read_relay(signed)
    verify = public_key_from_peer_id(announcement.peer)
    if not verify(relay_bytes_to_sign(signed.body), signed.signature):
        raise RemoteProtocolError("a relay's addresses are not signed by it")
    return announcement
