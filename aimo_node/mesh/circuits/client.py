"""Circuits of a node that is no relay: reservations that let others reach it through a relay, and
dials through the relays of others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role, is_peer_id
from aimo_node.errors import AimoError, CloseCode, NetworkError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.fixes.circuit_messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    Reservation,
    Status,
    answer_offer,
    ask_for_circuit,
    ask_for_reservation,
    read_offer,
)
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol.limits import ADDRESS_CHARS_MAX

log = structlog.get_logger()

RESERVATIONS_MAX: Final = 2
"""Relays a node is reached through at a time: one, and one for the moment the first dies."""
RELAYS_PER_PEER_MAX: Final = 4
"""Of the relays in a peer's addresses those that are asked: each may have to be dialled first."""
ADDRESSES_PER_RELAY_MAX: Final = 3
"""Of a relay's addresses those that are announced; who has a link to it needs none."""
ASKED_AT_ONCE: Final = 64
ASKED_PER_SECOND: Final = 4.0
"""Circuits asked of one relay, as many as it grants one member. A hundred streams in a second would
cost the connection to it, and all circuits that work."""
ANSWER_SECONDS: Final = 5.0
"""For a relay's answer to a reservation, or an offer after its stream: a few round trips."""
RENEW_SECONDS_MIN: Final = 10.0
RENEW_SECONDS_MAX: Final = 200.0
"""Reservations are renewed in half of their time, but not more or less often than this: the
relay's clock may be wrong."""
RETRY_SECONDS: Final = 5.0
"""From a relay's refusal to the next request; doubles with each refusal in a row."""
RETRY_SECONDS_MAX: Final = 60.0

_CIRCUIT: Final = "/p2p-circuit/p2p/"


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay."""
    return "/p2p-circuit" in address


def relays_in(addresses: Iterable[str], peer: PeerId) -> dict[PeerId, list[str]]:
    """The relays that circuit addresses of `peer` name, each with where it can be dialled.

    What is no circuit to this peer is left out, and so are relays after the first few.
    """
    found: dict[PeerId, list[str]] = {}
    for address in addresses:
        place, _, target = address.partition(_CIRCUIT)
        relay = PeerId(place.rpartition("/p2p/")[2])
        if target == peer and is_peer_id(relay) and relay != peer:
            found.setdefault(relay, []).append(place)
    return dict(islice(found.items(), RELAYS_PER_PEER_MAX))


@dataclass(slots=True)
class _Held:
    """A reservation, and when to renew it in steady time."""

    addresses: tuple[str, ...]
    renew_at: float


@dataclass(slots=True)
class _Refusal:
    """When a relay may be asked again, and how often it refused in a row."""

    again_at: float
    times: int


class Circuits(IdleObserver):
    """Keeps reservations and dials through relays. `run` is its life.

    Args:
        host: what streams are opened on; offers of relays are taken from now on.
        network: the links; a relay without one is asked for nothing.
        relays: those of the mesh: nobody else is trusted with being the way here. May change.
        changed: called when `addresses` has changed.
        reservations_max: relays to be reached through; 0 for a node that is a relay itself.
    """

    def __init__(
        self,
        host: MeshHost,
        network: MeshNetwork,
        relays: Container[PeerId],
        *,
        changed: Callable[[], None],
        reservations_max: int = RESERVATIONS_MAX,
    ) -> None:
        self._host = host
        self._network = network
        self._relays = relays
        self._changed = changed
        self._reservations_max = reservations_max
        self._held: dict[PeerId, _Held] = {}
        self._refusals: dict[PeerId, _Refusal] = {}
        self._bridges: Counter[PeerId] = Counter()
        """Relays that are linked to just now, for a circuit through them."""
        self._asked: dict[PeerId, Allowance] = {}
        """For each relay that was asked for a circuit since it was linked."""
        self._news = trio.Event()

    def addresses(self) -> tuple[str, ...]:
        """Where this node is reached through its relays."""
        return tuple(address for held in self._held.values() for address in held.addresses)

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """Where this node has reservations."""
        return tuple(self._held)

    async def run(self) -> None:
        """Keep reservations until cancelled."""
        self._host.serve_raw(STOP_PROTOCOL, self._take_offer)
        while True:
            self._news = trio.Event()  # before looking: what happens meanwhile is news, too
            for relay in self._due(trio.current_time()):
                await self._reserve(relay)
            with trio.move_on_at(self._next_look(trio.current_time())):
                await self._news.wait()

    def look(self) -> None:
        """Whom to trust with being the way here may have changed."""
        self._news.set()

    def retry_now(self) -> None:
        """Reservations may have lapsed, and who refused may agree now: ask anew, at once."""
        self._refusals.clear()
        for held in self._held.values():
            held.renew_at = trio.current_time()
        self._news.set()

    def link_opened(self, link: Link) -> None:
        """A relay may be there."""
        self._refusals.pop(link.peer, None)
        self._news.set()

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """With the link to a relay the reservation is gone."""
        if self._network.link(link.peer) is None:
            self._asked.pop(link.peer, None)
            self._lose(link.peer)

    def link_changed(self, link: Link) -> None:
        """A relay that goes away is left at once."""
        if link.draining:
            self._lose(link.peer)

    async def dial(self, peer: PeerId, relay: PeerId, places: Sequence[str]) -> LinkStream:
        """Open a link's stream to `peer` through a relay.

        Args:
            peer: who must answer at the far end.
            relay: who is asked for the circuit; linked to first if need be.
            places: where the relay can be dialled, if nothing better is known.

        Raises:
            NetworkError: the relay or the peer cannot be reached, or refuses.
        """
        if relay == self._network.peer:
            raise NetworkError("this node is the relay itself, and has no link to the peer")
        try:
            await self._link_to(relay, places)
            if not self._may_dial(relay):
                raise NetworkError("asked too often")
            net_stream = await self._host.open_stream(relay, HOP_PROTOCOL)
        except AimoError as error:
            raise NetworkError(f"relay {relay}: {error}") from error
        try:
            await ask_for_circuit(net_stream.muxed_stream, peer)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await net_stream.reset()
            if isinstance(error, NetworkError):
                raise NetworkError(f"relay {relay}: {error}") from error
            raise
        return await self._host.connect_over(net_stream, peer)

    def is_bridge(self, peer: PeerId) -> bool:
        """Whether a link to this relay is wanted for circuits, which only a direct one is good
        for."""
        return self._bridges[peer] > 0

    async def _link_to(self, relay: PeerId, places: Sequence[str]) -> None:
        if relay not in self._relays and self._network.link(relay) is None:
            # before what was known: that may be what somebody else made up
            self._network.learn(relay, places[:ADDRESSES_PER_RELAY_MAX])
        self._bridges[relay] += 1
        try:
            link = await self._network.connect(relay)
        finally:
            self._bridges[relay] -= 1
            self._bridges += Counter()  # drops those at zero
        if Role.RELAY not in link.roles:
            raise NetworkError("it does not act as one")

    def _may_dial(self, relay: PeerId) -> bool:
        now = trio.current_time()
        if relay not in self._asked:
            self._asked[relay] = Allowance(ASKED_AT_ONCE, ASKED_PER_SECOND, now)
        return self._asked[relay].take(now)

    async def _take_offer(self, net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
        """A relay connects somebody to this node."""
        stream = net_stream.muxed_stream
        relay = PeerId(stream.muxed_conn.peer_id.to_base58())
        try:
            with trio.fail_after(ANSWER_SECONDS):
                source = await read_offer(stream)
                if relay not in self._held or stream.muxed_conn.path != "direct":
                    await answer_offer(stream, Status.PERMISSION_DENIED)
                    return
                await answer_offer(stream, Status.OK)
            await self._host.accept_over(net_stream)
        except (NetworkError, trio.TooSlowError) as error:
            # strangers may offer as often as they like
            say = log.info if relay in self._held else log.debug
            say("circuit.refused", relay=relay, reason=str(error))
            stream.reset_now()
        else:
            log.debug("circuit.closed", relay=relay, source=source)
        finally:
            with trio.CancelScope(shield=True):
                await net_stream.close()

    def _due(self, now: float) -> Iterator[PeerId]:
        """Whom to ask now: those whose reservation is to be renewed, and new ones for the rest."""
        yield from [relay for relay, held in self._held.items() if held.renew_at <= now]
        for link in self._network.links():
            if len(self._held) >= self._reservations_max:
                return
            refusal = self._refusals.get(link.peer)
            rests = refusal is not None and now < refusal.again_at
            if self._may_ask(link) and link.peer not in self._held and not rests:
                yield link.peer

    def _may_ask(self, link: Link) -> bool:
        return Role.RELAY in link.roles and link.peer in self._relays and link.usable

    def _next_look(self, now: float) -> float:
        times = [held.renew_at for held in self._held.values()]
        times += [refusal.again_at for refusal in self._refusals.values()]
        return min((at for at in times if at > now), default=now + RENEW_SECONDS_MAX)

    async def _reserve(self, relay: PeerId) -> None:
        link = self._network.link(relay)
        try:
            with trio.fail_after(ANSWER_SECONDS):
                net_stream = await self._host.open_stream(relay, HOP_PROTOCOL)
                try:
                    granted = await ask_for_reservation(net_stream.muxed_stream)
                finally:
                    with trio.CancelScope(shield=True):
                        await net_stream.reset()
        except (NetworkError, trio.TooSlowError) as error:
            self._note_refusal(relay, str(error) or "no answer in time")
            return
        if link is None or self._network.link(relay) is None:
            return  # it went in the meantime
        seconds = (granted.expires - time.time_ns() / 1e9) / 2
        renew_at = trio.current_time() + min(max(seconds, RENEW_SECONDS_MIN), RENEW_SECONDS_MAX)
        known = self._held.get(relay)
        self._held[relay] = _Held(self._ways_through(link, granted), renew_at)
        self._refusals.pop(relay, None)
        if known is None:
            log.info("reservation.made", relay=relay)
        if known is None or known.addresses != self._held[relay].addresses:
            self._changed()

    def _ways_through(self, link: Link, granted: Reservation) -> tuple[str, ...]:
        """First the address that this node reached the relay at: others may, too."""
        suffix = f"/p2p/{link.peer}"
        ways = [f"{link.stream.remote_address}{suffix}"] if link.stream.initiator else []
        ways += [way for way in granted.addresses if way.endswith(suffix) and not is_circuit(way)]
        circuits = [f"{way}{_CIRCUIT}{self._network.peer}" for way in dict.fromkeys(ways)]
        # one that is too long would keep the whole descriptor from being announced
        fitting = [address for address in circuits if len(address) <= ADDRESS_CHARS_MAX]
        return tuple(fitting[:ADDRESSES_PER_RELAY_MAX])

    def _note_refusal(self, relay: PeerId, reason: str) -> None:
        known = self._refusals.get(relay)
        times = known.times + 1 if known is not None else 1
        pause = min(RETRY_SECONDS * 2.0 ** min(times - 1, 10), RETRY_SECONDS_MAX)
        self._refusals[relay] = _Refusal(trio.current_time() + pause, times)
        log.info("reservation.refused", relay=relay, reason=reason)
        self._lose(relay)

    def _lose(self, relay: PeerId) -> None:
        if self._held.pop(relay, None) is not None:
            log.info("reservation.lost", relay=relay)
            self._changed()
        self._news.set()
