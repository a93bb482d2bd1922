"""Direct links in the place of circuits: both ends say where they may be met, and go there at once.

The protocol is libp2p's DCUtR. Whoever accepted the circuit begins. The old link stays until the
new one is open, and until what runs on it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode, NetworkError
from aimo_node.mesh.circuits.direct import DirectWays, Foothold
from aimo_node.mesh.circuits.targets import Targets, worth_trying
from aimo_node.mesh.circuits.upgrade import UpgradeBook
from aimo_node.mesh.fixes.hole_punch_messages import (
    HOLE_PUNCH_PROTOCOL,
    await_signal,
    give_signal,
    hear_addresses,
    tell_addresses,
)
from aimo_node.mesh.host import CIRCUIT, DIRECT, MeshHost
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver

log = structlog.get_logger()

ATTEMPTS: Final = 3
"""In one round, as the specification has it: each measures the way anew."""
MEETING_SECONDS: Final = 5.0
"""One attempt: the first packets, two repetitions of theirs after 1 and 3 s, and the handshakes."""
ANSWER_SECONDS: Final = 5.0
"""For a message of the peer after ours, through the relay."""
ROUND_SECONDS: Final = ATTEMPTS * (MEETING_SECONDS + ANSWER_SECONDS)
SERVED_MAX: Final = 8
"""Rounds at a time that peers have begun."""
HOLE_PUNCHED: Final = "hole punched"


@dataclass(slots=True)
class _Round:
    """One round with one peer.

    Attributes:
        stream: libp2p's, for messages, over the circuit.
        own: where this node may be met.
        punched: whether there has been a connection that both ends opened.
        problems: why attempts failed.
        arrived: set when a direct link is open.
    """

    peer: PeerId
    stream: Any
    foothold: Foothold
    own: Sequence[str]
    targets: Targets
    attempts: int = 0
    punched: bool = False
    problems: list[str] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)

    @property
    def summary(self) -> str:
        """What came of it, in words."""
        problem = self.problems[-1] if self.problems else "no answer"
        tries = "once" if self.attempts == 1 else f"{self.attempts} times"
        return f"hole punching failed {tries}: {problem}"


class Upgrades(IdleObserver):
    """Looks for direct ways to peers on circuits. `run` is its life.

    Args:
        host: what connections are made with.
        network: the links.
        addresses: where this node can be reached, as it announces it.
    """

    def __init__(
        self, host: MeshHost, network: MeshNetwork, addresses: Callable[[], Sequence[str]]
    ) -> None:
        self._host = host
        self._network = network
        self._addresses = addresses
        self._book = UpgradeBook()
        self._served: set[PeerId] = set()
        """Whose rounds run here."""
        self._replaceable: dict[PeerId, Link] = {}
        """The circuit's link of each peer that has one."""
        self._awaited: dict[PeerId, _Round] = {}
        """The rounds in which a peer is waited for."""
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._ways: DirectWays

    async def run(self) -> None:
        """Begin rounds when they are due, and answer those of others, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._ways = DirectWays(self._host, nursery)
            self._host.serve_raw(HOLE_PUNCH_PROTOCOL, self._serve)
            try:
                await self._begin_rounds(nursery)
            finally:
                self._nursery = None  # it takes nothing more

    async def _begin_rounds(self, nursery: trio.Nursery) -> None:
        while True:
            self._news = trio.Event()
            if not self._network.draining:
                for peer in self._book.begin(trio.current_time()):
                    nursery.start_soon(self._try, peer)
            with trio.move_on_at(self._book.next_at()):
                await self._news.wait()

    def retry_now(self) -> None:
        """The networks of this machine have changed: what has failed so far may work now."""
        self._book.retry_now(trio.current_time())
        self._news.set()

    def link_opened(self, link: Link) -> None:
        """A circuit to be replaced, or what replaces it."""
        if link.path == CIRCUIT:
            self._replaceable[link.peer] = link
            accepted = not link.stream.initiator
            self._book.circuit_opened(link.peer, trio.current_time(), accepted=accepted)
            self._news.set()
            return
        self._book.left(link.peer)
        meeting = self._awaited.pop(link.peer, None)
        if meeting is not None:
            if meeting.punched and not link.stream.initiator:
                link.reason = HOLE_PUNCHED  # before anybody can ask
            meeting.arrived.set()
        replaced = self._replaceable.pop(link.peer, None)
        if replaced is not None and self._nursery is not None:
            how = {"address": link.stream.remote_address, "reason": link.reason}
            log.info("link.upgraded", peer=link.peer, **how)
            self._nursery.start_soon(self._clear_away, replaced)

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """Without a circuit there is nothing to replace."""
        is_gone = self._network.link(link.peer) is None
        if is_gone and self._replaceable.get(link.peer) is link:
            del self._replaceable[link.peer]
            self._book.left(link.peer)

    async def _clear_away(self, link: Link) -> None:
        """A circuit costs its relay twice what it carries, and a place."""
        await link.ended.wait()
        await self._host.close_circuits(link.peer)

    # --- rounds that this node begins ---------------------------------------------------------

    async def _try(self, peer: PeerId) -> None:
        is_direct = False
        try:
            is_direct = await self._begin(peer)
        except (NetworkError, trio.TooSlowError) as error:
            self._note_failure(peer, f"hole punching failed: {str(error) or 'no answer in time'}")
        except Exception:  # the root of a round's task: it must not take the node down
            log.exception("upgrade.crashed", peer=peer)
        finally:
            if is_direct:
                self._book.succeeded(peer)
            else:
                self._book.failed(peer, trio.current_time())
            self._awaited.pop(peer, None)
            self._news.set()

    async def _begin(self, peer: PeerId) -> bool:
        """Whether there is a direct link at the end."""
        net_stream = await self._host.open_stream(peer, HOLE_PUNCH_PROTOCOL, CIRCUIT)
        try:
            with trio.fail_after(ROUND_SECONDS):
                meeting = await self._prepare(peer, net_stream.muxed_stream)
                while meeting.attempts < ATTEMPTS and self._on_circuit(peer):
                    targets = await self._synchronise(meeting)
                    if await self._receive(meeting, targets):
                        return True
        finally:
            with trio.CancelScope(shield=True):
                await net_stream.reset()
        if self._is_direct(peer):
            return True
        self._note_failure(peer, meeting.summary)
        return False

    async def _prepare(self, peer: PeerId, stream: Any) -> _Round:  # noqa: ANN401 (YamuxStream)
        relay = PeerId(stream.muxed_conn.relay.to_base58())
        foothold = await self._ways.foothold(relay)
        seen = [] if foothold.observed is None else [foothold.observed]
        own = worth_trying([*seen, *self._addresses()], loopback=foothold.is_loopback)
        return _Round(peer, stream, foothold, own, Targets(loopback=foothold.is_loopback))

    async def _synchronise(self, meeting: _Round) -> list[str]:
        """Where to meet the peer, at the moment when it sets out."""
        started = trio.current_time()
        with trio.fail_after(ANSWER_SECONDS):
            await tell_addresses(meeting.stream, meeting.own)
            told = await hear_addresses(meeting.stream)
            round_trip = trio.current_time() - started
            await give_signal(meeting.stream)
        await trio.sleep(round_trip / 2)
        return meeting.targets.of(told)

    async def _receive(self, meeting: _Round, targets: Sequence[str]) -> bool:
        """One attempt, as the one that the peer comes to; whether a direct link has come of it."""
        if not self._on_circuit(meeting.peer):
            return self._is_direct(meeting.peer)
        meeting.attempts += 1
        self._awaited[meeting.peer] = meeting
        with trio.move_on_after(MEETING_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_peer, meeting, targets)
                if meeting.attempts == 1:
                    # where the peer listens, it need not come: and that takes no appointment
                    nursery.start_soon(self._visit, meeting, targets)
                await meeting.arrived.wait()
                nursery.cancel_scope.cancel()
        return meeting.arrived.is_set()

    async def _await_peer(self, meeting: _Round, targets: Sequence[str]) -> None:
        try:
            where = await self._ways.await_at(meeting.peer, targets, meeting.foothold)
        except NetworkError as error:
            meeting.problems.append(error.message)
            return
        meeting.punched = True
        log.debug("upgrade.met", peer=meeting.peer, address=where)

    async def _visit(self, meeting: _Round, targets: Sequence[str]) -> None:
        try:
            stream = await self._ways.dial(meeting.peer, targets)
        except NetworkError as error:
            log.debug("upgrade.not_dialled", peer=meeting.peer, reason=error.message)
            return
        await self._adopt(stream)

    # --- rounds that peers begin --------------------------------------------------------------

    async def _serve(self, net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
        stream = net_stream.muxed_stream
        peer = PeerId(stream.muxed_conn.peer_id.to_base58())
        try:
            if not self._may_answer(peer, stream):
                log.debug("upgrade.refused", peer=peer)
                return
            self._served.add(peer)
            try:
                with trio.fail_after(ROUND_SECONDS):
                    await self._answer(peer, stream)
            finally:
                self._served.discard(peer)
        except (NetworkError, trio.TooSlowError) as error:
            log.debug("upgrade.not_answered", peer=peer, reason=str(error))
        finally:
            with trio.CancelScope(shield=True):
                await net_stream.reset()

    def _may_answer(self, peer: PeerId, stream: Any) -> bool:  # noqa: ANN401 (YamuxStream)
        """Only for members, only over the circuit that is to be replaced, one round at a time."""
        if stream.muxed_conn.path != CIRCUIT or not self._on_circuit(peer):
            return False
        if peer in self._served or len(self._served) >= SERVED_MAX:
            return False
        return self._book.may_answer(peer, trio.current_time())

    async def _answer(self, peer: PeerId, stream: Any) -> None:  # noqa: ANN401 (YamuxStream)
        meeting = await self._prepare(peer, stream)
        attempt = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            while meeting.attempts < ATTEMPTS:
                try:
                    targets = await self._follow(meeting, attempt)
                except NetworkError:
                    break  # the peer has what it wanted, or has given up
                meeting.attempts += 1
                attempt = trio.CancelScope(deadline=trio.current_time() + MEETING_SECONDS)
                nursery.start_soon(self._go, meeting, targets, attempt)
        if meeting.attempts and self._on_circuit(peer):
            self._note_failure(peer, meeting.summary)

    async def _follow(self, meeting: _Round, attempt: trio.CancelScope) -> list[str]:
        """Where to go, at the moment when the peer says so; the attempt before ends first."""
        told = await hear_addresses(meeting.stream)
        attempt.cancel()
        await tell_addresses(meeting.stream, meeting.own)
        await await_signal(meeting.stream)
        return meeting.targets.of(told)

    async def _go(self, meeting: _Round, targets: Sequence[str], attempt: trio.CancelScope) -> None:
        with attempt:
            try:
                stream = await self._ways.meet(meeting.peer, targets, meeting.foothold)
            except NetworkError as error:
                meeting.problems.append(error.message)
                return
            stream.reason = HOLE_PUNCHED
            await self._adopt(stream)

    # --- both ---------------------------------------------------------------------------------

    async def _adopt(self, stream: LinkStream) -> None:
        if self._is_direct(stream.peer):
            await stream.reset()  # the other end was faster
        else:
            await self._network.adopt(stream)

    def _note_failure(self, peer: PeerId, problem: str) -> None:
        log.info("upgrade.failed", peer=peer, reason=problem)
        link = self._network.link(peer)
        if link is not None and link.stream.relay is not None:
            link.reason = f"circuit through {link.stream.relay}: {problem}"

    def _on_circuit(self, peer: PeerId) -> bool:
        link = self._network.link(peer)
        return link is not None and link.path == CIRCUIT

    def _is_direct(self, peer: PeerId) -> bool:
        link = self._network.link(peer)
        return link is not None and link.path == DIRECT
