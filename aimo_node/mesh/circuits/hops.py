"""The relay's side of circuits: members reserve, and reach each other through this node.

A member is whoever has a link to this relay that admits it now. What a circuit carries is sealed
between its two ends; here it is moved and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode, NetworkError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.circuits.quotas import RESERVATION_SECONDS, CircuitBook, CircuitLimits, Rate
from aimo_node.mesh.fixes.circuit_messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    Reservation,
    Status,
    answer_wish,
    grant_reservation,
    offer_circuit,
    read_wish,
)
from aimo_node.mesh.fixes.library import MuxedStreamEOF, MuxedStreamError
from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES
from aimo_node.mesh.fixes.yamux_frames import PAYLOAD_BYTES_MAX
from aimo_node.mesh.fixes.yamux_stream import YamuxStream
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver

log = structlog.get_logger()

WISH_SECONDS: Final = 5.0
"""From an open stream to its wish, and for the far end's answer: a few round trips."""
STALL_SECONDS: Final = 20.0
"""An end that takes nothing for so long is gone: links call it dead sooner."""
LINGER_SECONDS: Final = 5.0
"""What the other direction gets once one has finished."""
REFUSALS_LOGGED: Final = 20
REFUSALS_LOGGED_PER_SECOND: Final = 1.0
"""Members that are refused a circuit, in the log of a relay that shows no details."""


class _Circuit:
    """One circuit that runs."""

    def __init__(
        self, source: PeerId, destination: PeerId, rates: list[Rate], limits: CircuitLimits
    ) -> None:
        self.source = source
        self.destination = destination
        self.scope = trio.CancelScope()
        self.carried = 0
        self._rates = rates
        self._bytes_max = limits.circuit_bytes_max

    def count(self, size: int) -> bool:
        """Note that `size` bytes go through; false if they are too many."""
        self.carried += size
        return not self._bytes_max or self.carried <= self._bytes_max

    def pause(self, size: int, now: float) -> float:
        """How many seconds to wait after `size` bytes, so that both members keep to their rate."""
        return max(rate.spend(size, now) for rate in self._rates)


class CircuitRelay(IdleObserver):
    """Serves circuits to members.

    Args:
        host: what the streams come from; hop requests are taken from now on.
        network: who is a member.
        addresses: where this relay is reached, for those that announce it.
        limits: what members may cost.
    """

    def __init__(
        self,
        host: MeshHost,
        network: MeshNetwork,
        addresses: Callable[[], tuple[str, ...]],
        limits: CircuitLimits | None = None,
    ) -> None:
        self._host = host
        self._network = network
        self._addresses = addresses
        self._limits = limits or CircuitLimits()
        self.book = CircuitBook(self._limits)
        self.bytes_carried = 0
        """Through all circuits since the start, both directions."""
        self._running: set[_Circuit] = set()
        self._refusals_to_log = Allowance(REFUSALS_LOGGED, REFUSALS_LOGGED_PER_SECOND, 0.0)

    def start(self) -> None:
        """Take requests from now on; the host has to have started."""
        self._host.serve_raw(HOP_PROTOCOL, self._serve)

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """Who is no member any more has neither reservation nor circuits."""
        if self._network.link(link.peer) is None:
            self.book.withdraw(link.peer)
            for circuit in self._running:
                if link.peer in {circuit.source, circuit.destination}:
                    circuit.scope.cancel()

    async def _serve(self, net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
        stream: YamuxStream = net_stream.muxed_stream
        peer = PeerId(stream.muxed_conn.peer_id.to_base58())
        try:
            with trio.fail_after(WISH_SECONDS):
                wish = await read_wish(stream)
            status = await self._fulfil(stream, peer, wish)
            if status is not Status.OK:
                say = log.info if self._is_worth_saying(status) else log.debug
                say("circuit.refused", peer=peer, destination=wish, reason=status.name)
                with trio.fail_after(WISH_SECONDS):
                    await answer_wish(stream, status)
        except (NetworkError, MuxedStreamError, trio.TooSlowError) as error:
            log.debug("circuit.failed", peer=peer, reason=str(error))
            stream.reset_now()
        finally:
            with trio.CancelScope(shield=True):
                await net_stream.close()

    async def _fulfil(self, stream: YamuxStream, peer: PeerId, wish: PeerId | None) -> Status:
        """Do what `peer` wants; OK if that was done and said."""
        if stream.muxed_conn.path != "direct" or not self._is_member(peer):
            return Status.PERMISSION_DENIED
        now = trio.current_time()
        if wish is None:
            if not self.book.reserve(peer, now):
                return Status.RESERVATION_REFUSED
            expires = int(time.time_ns() / 1e9 + RESERVATION_SECONDS)
            with trio.fail_after(WISH_SECONDS):
                await grant_reservation(stream, Reservation(expires, self._addresses()))
            return Status.OK
        if not self._is_member(wish) or not self.book.has_reservation(wish, now):
            return Status.NO_RESERVATION
        if not self.book.has_room(peer, wish) or not self.book.take_opening(peer, wish, now):
            return Status.RESOURCE_LIMIT_EXCEEDED
        circuit = _Circuit(peer, wish, self.book.open(peer, wish, now=now), self._limits)
        self._running.add(circuit)
        try:
            return await self._connect(stream, circuit)
        finally:
            self._running.discard(circuit)
            self.book.close(peer, wish)

    def _is_worth_saying(self, status: Status) -> bool:
        """Strangers may ask as often as they like, and members a hundred times a second."""
        is_stranger = status is Status.PERMISSION_DENIED
        return not is_stranger and self._refusals_to_log.take(trio.current_time())

    def _is_member(self, peer: PeerId) -> bool:
        return bool(self._network.rights(peer))

    async def _connect(self, near: YamuxStream, circuit: _Circuit) -> Status:
        try:
            with trio.fail_after(WISH_SECONDS):
                net_stream = await self._host.open_stream(circuit.destination, STOP_PROTOCOL)
        except (NetworkError, trio.TooSlowError):
            return Status.CONNECTION_FAILED
        far: YamuxStream = net_stream.muxed_stream
        try:
            try:
                with trio.fail_after(WISH_SECONDS):
                    await offer_circuit(far, circuit.source)
            except (NetworkError, trio.TooSlowError):
                return Status.CONNECTION_FAILED
            with trio.fail_after(WISH_SECONDS):
                await answer_wish(near, Status.OK)
            await self._carry(near, far, circuit)
            return Status.OK
        finally:
            far.reset_now()
            with trio.CancelScope(shield=True):
                await net_stream.close()

    async def _carry(self, near: YamuxStream, far: YamuxStream, circuit: _Circuit) -> None:
        """Move bytes both ways until both ends have finished or one has gone."""
        log.info("circuit.opened", source=circuit.source, destination=circuit.destination)
        for end in (near, far):
            end.keep_window()
            end.muxed_conn.allow_unread(RECEIVE_WINDOW_BYTES)
        try:
            with circuit.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._move, near, far, circuit)
                    nursery.start_soon(self._move, far, near, circuit)
        finally:
            for end in (near, far):
                end.reset_now()
                end.muxed_conn.allow_unread(-RECEIVE_WINDOW_BYTES)
            log.info("circuit.closed", source=circuit.source, bytes=circuit.carried)

    async def _move(self, source: YamuxStream, sink: YamuxStream, circuit: _Circuit) -> None:
        try:
            while True:
                data = await source.read(PAYLOAD_BYTES_MAX)
                if not circuit.count(len(data)):
                    log.warning("circuit.cut_off", source=circuit.source, reason="too many bytes")
                    circuit.scope.cancel()
                    return
                self.bytes_carried += len(data)
                pause = circuit.pause(len(data), trio.current_time())
                if pause:
                    await trio.sleep(pause)
                with trio.fail_after(STALL_SECONDS):
                    await sink.write(data)
        except MuxedStreamEOF:
            sink.finish()
            circuit.scope.deadline = trio.current_time() + LINGER_SECONDS
        except (MuxedStreamError, trio.TooSlowError):
            circuit.scope.cancel()
