"""Fault: libp2p's Yamux reads header and body apart, and trusts the peer in several places.

`YamuxConnection` parses everything a burst contains in one go and refuses what libp2p lets
pass: other versions, unknown kinds, data beyond the granted window, streams of the wrong side,
more streams than allowed, floods of pings. It replaces libp2p's class through
`muxer_choice.YamuxOnly`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import structlog
import trio

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.frame_rates import FrameRates
from aimo_node.mesh.fixes.library import ID, IMuxedConn, MuxedConnUnavailable, MuxedStreamError
from aimo_node.mesh.fixes.limits import UNREAD_BYTES_MAX, UNSENT_REPLIES_MAX, HostLimits
from aimo_node.mesh.fixes.noise_messages import BrokenSeal, take_over_ciphers
from aimo_node.mesh.fixes.outbox import Outbox, PeerStalled
from aimo_node.mesh.fixes.read_ahead import WIRE_ERRORS, Wire
from aimo_node.mesh.fixes.yamux_frames import GoAwayCode
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

log = structlog.get_logger()

_GOODBYE_SECONDS_MAX: Final = 0.5
"""How long a closing connection waits for its last bytes to leave."""


class YamuxViolation(Exception):  # noqa: N818 (a fact about the peer)
    """The peer sent something no honest Yamux sends."""


class LowerStream(Protocol):
    """What a connection runs on: a TCP stream, or a circuit through a relay."""

    path: str
    relay: ID | None
    """Who carries a circuit."""

    def take_wire(self) -> Wire:
        """Hand over what the handshakes were done on."""

    def get_local_address(self) -> tuple[str, int] | None:
        """Host and port of this side, if it has a socket."""


class YamuxConnection(IMuxedConn):  # type: ignore[misc]
    """All streams of one connection; owned by libp2p's Swarm, which runs `start` as a task.

    Args:
        session: libp2p's SecureSession after the Noise handshake; not used by anybody else.
        lower: the TCP stream or the circuit below it.
        peer_id: who is on the other side.
        limits: the host's limits.
    """

    def __init__(
        self,
        session: Any,  # noqa: ANN401 (libp2p is not typed for us)
        lower: LowerStream,
        peer_id: ID,
        limits: HostLimits,
    ) -> None:
        self.secured_conn = session
        self.peer_id = peer_id
        self.path = lower.path
        self.relay = lower.relay
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None  # set by libp2p, not needed
        sealer, self._opener, self._leftover = take_over_ciphers(session)
        self._wire = lower.take_wire()
        self._lower = lower
        self.outbox = Outbox(self._wire, sealer, limits.write_seconds_max)
        self._inbound_streams_max = limits.inbound_streams_max
        self._is_initiator = bool(session.is_initiator)
        self._next_id = 1 if self._is_initiator else 2
        self._streams: dict[int, YamuxStream] = {}
        self._inbound_open = 0
        self._arrivals, self._departures = trio.open_memory_channel[YamuxStream](
            limits.inbound_streams_max
        )
        self._arrived: list[YamuxStream] = []
        self._unread_bytes = 0
        self._unread_bytes_max = UNREAD_BYTES_MAX
        self._unsent_replies = 0
        self._rates = FrameRates()
        self._partial = b""
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: YamuxStream | None = None
        self._scope = trio.CancelScope()
        self._closed = False

    # --- what libp2p asks for ----------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        """Whether this side dialled."""
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._closed

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self._closed

    def rtt(self) -> float:
        """Not measured here: the link measures its own."""
        return 0.0

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other side."""
        address: tuple[str, int] | None = self.secured_conn.get_remote_address()
        return address

    def get_local_address(self) -> tuple[str, int] | None:
        """Host and port of this side; None over a circuit."""
        return self._lower.get_local_address()

    def get_transport_addresses(self) -> list[Any]:
        """The other side's address as a list of one multiaddr."""
        return list(self.secured_conn.get_transport_addresses())

    def get_connection_type(self) -> Any:  # noqa: ANN401 (an enum of libp2p)
        """Direct or relayed."""
        return self.secured_conn.get_connection_type()

    async def open_stream(self) -> YamuxStream:
        """Open a stream; the peer need not have answered when this returns."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise MuxedStreamError("the connection is closed")
        stream = YamuxStream(self._next_id, self, ours=True)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.outbox.put(frames.window_update(stream.stream_id, 0, frames.SYN))
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream the peer opens.

        Raises:
            MuxedConnUnavailable: the connection is closed.
        """
        try:
            return await self._departures.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    async def start(self) -> None:
        """Run the connection until it ends; never raises, since that would end the whole node."""
        self.event_started.set()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_half, self.outbox.run)
                nursery.start_soon(self._run_half, self._receive_all)

    async def close(self) -> None:
        """Say goodbye, wait a moment for it to leave, and close."""
        if not self._closed:
            self.outbox.put(frames.go_away(GoAwayCode.NORMAL))
            with trio.move_on_after(_GOODBYE_SECONDS_MAX):
                await self.outbox.drain()
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close at once and wake every waiting task; what has arrived can still be read."""
        if self._closed:
            return
        self._closed = True
        self.outbox.close()
        self._wire.close()
        self._arrivals.close()
        for stream in list(self._streams.values()):
            if self._remove(stream):
                self._unread_bytes -= stream.unread_bytes  # they stay with whoever reads them
            stream.lose_connection()
        self._scope.cancel()

    # --- what streams tell -------------------------------------------------------------------

    def note_arrived(self, stream: YamuxStream) -> None:
        """Something came for a stream that wants it handed over."""
        self._arrived.append(stream)

    def note_read(self, stream: YamuxStream, count: int) -> None:
        """`count` bytes of `stream` were read: give the peer credit when it is time."""
        if self._streams.get(stream.stream_id) is not stream:
            return
        self._unread_bytes -= count
        credit = stream.credit_for(count)
        if credit:
            self.outbox.put(frames.window_update(stream.stream_id, credit))

    def allow_unread(self, count: int) -> None:
        """Let `count` bytes more wait unread, or less: each circuit has a window of its own."""
        self._unread_bytes_max += count

    def note_dropped(self, count: int) -> None:
        """`count` bytes will never be read."""
        self._unread_bytes -= count

    def forget_if_over(self, stream: YamuxStream) -> None:
        """Drop a stream both sides have finished; what is unread stays with whoever holds it."""
        if stream.finished and stream.peer_finished and self._remove(stream):
            self._unread_bytes -= stream.unread_bytes

    def abandon(self, stream: YamuxStream) -> None:
        """Drop a stream that is dead in both directions."""
        known = self._remove(stream)
        dropped = stream.break_off()
        if known:
            self._unread_bytes -= dropped

    def _remove(self, stream: YamuxStream) -> bool:
        if self._streams.get(stream.stream_id) is not stream:
            return False
        del self._streams[stream.stream_id]
        if not stream.is_initiator:
            self._inbound_open -= 1
        return True

    # --- running -----------------------------------------------------------------------------

    async def _run_half(self, half: Callable[[], Awaitable[None]]) -> None:
        try:
            await half()
        except WIRE_ERRORS:
            pass  # lost: whoever uses a stream learns it there
        except (YamuxViolation, BrokenSeal, PeerStalled) as error:
            log.info("connection.refused", peer=str(self.peer_id), reason=str(error))
            self.outbox.put(frames.go_away(GoAwayCode.PROTOCOL_ERROR))
        except Exception:
            # Root of the connection's tasks. Any error that left here would end the Swarm.
            log.exception("connection.failed", peer=str(self.peer_id))
        finally:
            self.close_now()

    async def _receive_all(self) -> None:
        if self._leftover:
            self._parse(self._leftover)
            self._leftover = b""
        while burst := await self._wire.receive():
            for plaintext in self._opener.open(burst):
                self._parse(plaintext)
            # Only now: what a burst holds for a stream is one piece, whatever its frames.
            for stream in self._arrived:
                stream.hand_over()
            self._arrived.clear()
            if not self.outbox.is_blocked:
                self._unsent_replies = 0

    def _parse(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        position = self._take_body(data, 0) if self._body_left else 0
        end = len(data)
        while end - position >= frames.HEADER_BYTES:
            version, kind, flags, stream_id, length = frames.HEADER.unpack_from(data, position)
            position += frames.HEADER_BYTES
            if version != frames.VERSION:
                raise YamuxViolation(f"Yamux version {version}")
            if kind == frames.DATA:
                self._begin_body(flags, stream_id, length)
                position = self._take_body(data, position)
            elif kind == frames.WINDOW_UPDATE:
                self._update_window(flags, stream_id, length)
            elif kind == frames.PING:
                self._answer_ping(flags, length)
            elif kind == frames.GO_AWAY:
                raise trio.ClosedResourceError("the peer closed the connection")
            else:
                raise YamuxViolation(f"unknown Yamux frame kind {kind}")
        if position < end:
            self._partial = data[position:]

    def _answer_ping(self, flags: int, value: int) -> None:
        if not self._rates.note_ping(trio.current_time()):
            raise YamuxViolation("too many pings")
        if flags & frames.SYN:
            self._reply(frames.pong(value))

    def _begin_body(self, flags: int, stream_id: int, length: int) -> None:
        if not length:
            self._count_empty()
        if flags & frames.SYN:
            self._open_for_peer(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            # Data may cross our reset; but nobody was ever granted more than a window.
            if length > frames.PAYLOAD_BYTES_ACCEPTED_MAX:
                raise YamuxViolation(f"a frame of {length} bytes")
        elif not stream.accepts(length):
            raise YamuxViolation(f"{length} bytes beyond the granted window")
        self._body_left = length
        self._body_flags = flags
        self._body_stream = stream

    def _take_body(self, data: bytes, position: int) -> int:
        stop = min(position + self._body_left, len(data))
        self._body_left -= stop - position
        stream = self._body_stream
        if stream is not None:
            self._unread_bytes += stream.receive(data[position:stop])
            if self._unread_bytes > self._unread_bytes_max:
                raise YamuxViolation(f"more than {self._unread_bytes_max} bytes nobody reads")
            if not self._body_left:
                self._body_stream = None
                if self._body_flags:
                    self._end_for_peer(stream, self._body_flags)
        return stop

    def _update_window(self, flags: int, stream_id: int, credit: int) -> None:
        self._count_empty()
        if flags & frames.SYN:
            self._open_for_peer(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.gain_credit(credit):
            raise YamuxViolation("an impossible send window")
        self._end_for_peer(stream, flags)

    def _open_for_peer(self, stream_id: int) -> None:
        if not self._rates.note_opening(trio.current_time()):
            raise YamuxViolation("opens too many streams")
        is_theirs = stream_id % 2 == (0 if self._is_initiator else 1)
        if not is_theirs or stream_id == 0 or stream_id in self._streams:
            raise YamuxViolation(f"stream {stream_id} is not the peer's to open")
        if self._inbound_open >= self._inbound_streams_max:
            self._reply(frames.reset(stream_id))
            return
        stream = YamuxStream(stream_id, self, ours=False)
        self._streams[stream_id] = stream
        self._inbound_open += 1
        self._reply(frames.window_update(stream_id, 0, frames.ACK))
        try:
            self._arrivals.send_nowait(stream)
        except trio.WouldBlock:
            stream.reset_now()

    def _count_empty(self) -> None:
        if not self._rates.note_empty(trio.current_time()):
            raise YamuxViolation("too many frames without payload")

    def _end_for_peer(self, stream: YamuxStream, flags: int) -> None:
        if flags & frames.RST:
            self.abandon(stream)
        elif flags & frames.FIN:
            stream.note_finished_by_peer()
            self.forget_if_over(stream)

    def _reply(self, frame: bytes) -> None:
        if self.outbox.is_blocked:
            self._unsent_replies += 1
            if self._unsent_replies > UNSENT_REPLIES_MAX:
                raise YamuxViolation("asks for answers and does not take them")
        self.outbox.put(frame)
