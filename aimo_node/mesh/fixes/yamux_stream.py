"""Fault: a read or a write of libp2p's that is cancelled half-way kills the connection.

This is one stream of a `YamuxConnection`, in the shape libp2p expects. Reading can be cancelled at
any time: what was received stays here. Writing is atomic: one write at a time, and the connection
has the whole frame before anybody can be cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import trio

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.library import (
    IMuxedStream,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES, SEND_WINDOW_BYTES_MAX
from aimo_node.mesh.fixes.window_updates import ReceiveWindow

if TYPE_CHECKING:
    from aimo_node.mesh.fixes.yamux_messages import YamuxConnection


class Delivery:
    """Somebody who has what arrives handed over, and what came of it."""

    __slots__ = ("error", "sink", "wants_more")

    def __init__(self, sink: Callable[[bytes], bool]) -> None:
        self.sink = sink
        self.wants_more = True
        self.error: Exception | None = None


class YamuxStream(IMuxedStream):  # type: ignore[misc]
    """A stream. One task reads at a time; several may write.

    Args:
        stream_id: odd ids belong to the side that dialled.
        connection: whom this stream belongs to.
        ours: whether this side opened it.
    """

    def __init__(self, stream_id: int, connection: YamuxConnection, *, ours: bool) -> None:
        self.stream_id = stream_id
        self.muxed_conn = connection
        self.is_initiator = ours
        self.peer_finished = False
        self.finished = False
        self.was_reset = False
        self._chunks: deque[bytes] = deque()
        self._window = ReceiveWindow()
        self._credit = RECEIVE_WINDOW_BYTES
        self._reader: trio.lowlevel.Task | None = None
        self._delivery: Delivery | None = None
        self._credit_waiter: trio.lowlevel.Task | None = None
        self._turn: trio.Lock | None = None
        self._discarding = False
        self._is_dropped = False

    # --- reading -----------------------------------------------------------------------------

    async def read(self, n: int | None = None) -> bytes:
        """At least one and at most `n` bytes, as soon as there are any.

        Raises:
            MuxedStreamEOF: the peer has finished and everything was read.
            MuxedStreamReset: the stream was reset, or the connection was lost.
        """
        if n == 0:
            return b""
        while not self._chunks:
            self._check_for_end()
            await self._wait_for_bytes()
        data = self._take(-1 if n is None else n)
        self.muxed_conn.note_read(self, len(data))
        return data

    async def deliver(self, sink: Callable[[bytes], bool]) -> None:
        """Hand everything that arrives to `sink` at once, in the task that reads the connection:
        that saves a task switch for each burst. Returns when `sink` wants no more.

        Whoever is cancelled here loses nothing: what arrives afterwards can be read.

        Raises:
            MuxedStreamEOF: the peer has finished and everything was handed over.
            MuxedStreamReset: the stream was reset, or the connection was lost.
            Exception: what `sink` raised, which must not block.
        """
        if self._delivery is not None:
            raise trio.BusyResourceError("another task is reading this stream")
        delivery = self._delivery = Delivery(sink)
        try:
            while delivery.wants_more:
                if self._chunks:
                    self.hand_over()
                    continue
                self._check_for_end()
                await self._wait_for_bytes()
        finally:
            self._delivery = None
        if delivery.error is not None:
            raise delivery.error

    def hand_over(self) -> None:
        """Give the sink what came with a burst; the connection calls it once all is parsed."""
        delivery = self._delivery
        chunks = self._chunks
        if delivery is None or not delivery.wants_more or not chunks:
            return
        data = chunks.popleft() if len(chunks) == 1 else self._take(-1)
        self.muxed_conn.note_read(self, len(data))
        try:
            delivery.wants_more = delivery.sink(data)
        except Exception as error:  # noqa: BLE001 (for the task in `deliver`: the stream's, not ours)
            delivery.wants_more, delivery.error = False, error
        if not delivery.wants_more:
            self._wake_reader()

    def _check_for_end(self) -> None:
        if self.peer_finished and not self._is_dropped:
            raise MuxedStreamEOF("the peer has finished")
        if self.was_reset:
            raise MuxedStreamReset("the stream was reset")

    async def _wait_for_bytes(self) -> None:
        if self._reader is not None:
            raise trio.BusyResourceError("another task is reading this stream")

        def stop_waiting(_: object) -> trio.lowlevel.Abort:
            self._reader = self._delivery = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    def _take(self, count: int) -> bytes:
        chunks = self._chunks
        first = chunks.popleft()
        if 0 <= count < len(first):
            chunks.appendleft(first[count:])
            return first[:count]
        if not chunks:
            return first
        taken = [first]
        room = count - len(first)
        while chunks and (count < 0 or len(chunks[0]) <= room):
            chunk = chunks.popleft()
            taken.append(chunk)
            room -= len(chunk)
        return b"".join(taken)

    # --- writing -----------------------------------------------------------------------------

    def write_nowait(self, data: bytes) -> bool:
        """Send `data` whole if that needs no waiting at all; whether it was sent.

        Raises:
            MuxedStreamClosed, MuxedStreamReset: it can never be sent.
        """
        if self.finished or self.was_reset:
            self._refuse_write()
        size = len(data)
        if (
            size > self._credit
            or size > frames.PAYLOAD_BYTES_MAX
            or self.muxed_conn.outbox.is_full
            or (self._turn is not None and self._turn.locked())
        ):
            return False
        self._credit -= size
        self.muxed_conn.outbox.put(frames.data(self.stream_id, data))
        return True

    def write_some_nowait(self, data: bytes) -> int:
        """Send as much of `data` as can be sent without waiting; the number of bytes taken.

        Raises:
            MuxedStreamClosed, MuxedStreamReset: it can never be sent.
        """
        if self.finished or self.was_reset:
            self._refuse_write()
        size = min(len(data), self._credit, frames.PAYLOAD_BYTES_MAX)
        if size <= 0 or self.muxed_conn.outbox.is_full:
            return 0
        self._credit -= size
        self.muxed_conn.outbox.put(frames.data(self.stream_id, data[:size]))
        return size

    async def write_some(self, data: bytes) -> int:
        """Wait until some of `data` can be sent, send it; the number of bytes taken. Not to be
        mixed with `write`. Safe to cancel."""
        while not (sent := self.write_some_nowait(data)):
            if self._credit <= 0:
                await self._wait_for_credit()
            else:
                await self.muxed_conn.outbox.wait_for_room()
        return sent

    def keep_window(self) -> None:
        """Never grant the peer more than the first window at a time."""
        self._window.keep_size()

    async def write(self, data: bytes) -> None:
        """Send `data` whole, waiting for the peer's credit; in one piece between other writes.

        If it is cancelled, a part may have been sent: shield it, or reset the stream.
        """
        if self.write_nowait(data):
            await trio.lowlevel.checkpoint()
            return
        if self._turn is None:
            self._turn = trio.Lock()
        async with self._turn:
            await self._write_in_pieces(memoryview(data))

    async def _write_in_pieces(self, data: memoryview) -> None:
        while data:
            while self._credit <= 0 and not (self.finished or self.was_reset):
                await self._wait_for_credit()
            await self.muxed_conn.outbox.wait_for_room()
            if self.finished or self.was_reset:
                self._refuse_write()
            size = min(len(data), self._credit, frames.PAYLOAD_BYTES_MAX)
            self._credit -= size
            self.muxed_conn.outbox.put(frames.data(self.stream_id, bytes(data[:size])))
            data = data[size:]

    async def _wait_for_credit(self) -> None:
        def stop_waiting(_: object) -> trio.lowlevel.Abort:
            self._credit_waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._credit_waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    def _refuse_write(self) -> NoReturn:
        if self.was_reset:
            raise MuxedStreamReset("the stream was reset")
        raise MuxedStreamClosed("this side has finished the stream")

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for a reader."""
        return sum(map(len, self._chunks))

    # --- what the connection tells -----------------------------------------------------------

    def receive(self, payload: bytes) -> int:
        """Take over received bytes; how many now wait to be read because of them."""
        if self._discarding or self.was_reset or not payload:
            return 0
        self._chunks.append(payload)
        if self._delivery is None:
            self._wake_reader()
        elif len(self._chunks) == 1:
            self.muxed_conn.note_arrived(self)
        return len(payload)

    def accepts(self, announced: int) -> bool:
        """Whether the peer had credit for a frame of this size."""
        return self._window.arrive(announced)

    def credit_for(self, count: int) -> int:
        """The credit to grant the peer after `count` bytes were read."""
        return 0 if self.peer_finished or self.was_reset else self._window.consume(count)

    def gain_credit(self, count: int) -> bool:
        """Add credit from the peer; false if no honest peer could have sent it."""
        self._credit += count
        if self._credit > 0 and self._credit_waiter is not None:
            self._wake_credit_waiter()
        return self._credit <= SEND_WINDOW_BYTES_MAX

    def note_finished_by_peer(self) -> None:
        """The peer sends no more."""
        self.peer_finished = True
        self._wake_reader()

    def break_off(self) -> int:
        """The stream is dead in both directions; how many unread bytes are dropped."""
        self._is_dropped = True
        dropped = self.unread_bytes
        self._chunks.clear()
        self.lose_connection()
        return dropped

    def lose_connection(self) -> None:
        """Nothing more comes or goes; what has arrived can still be read.

        A peer that finishes and goes away does both in one breath.
        """
        self.was_reset = True
        self._wake_reader()
        self._wake_credit_waiter()

    def _wake_reader(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)

    def _wake_credit_waiter(self) -> None:
        if self._credit_waiter is not None:
            task, self._credit_waiter = self._credit_waiter, None
            trio.lowlevel.reschedule(task)

    # --- ending ------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish this side; what the peer still sends can be read."""
        self.finish()
        await trio.lowlevel.checkpoint()

    def finish(self, *, discard: bool = False) -> None:
        """Finish this side at once.

        Args:
            discard: drop whatever the peer still sends, for nobody is going to read it.
        """
        if discard and not self._discarding:
            self._discarding = True
            self.muxed_conn.note_dropped(self.unread_bytes)
            self._chunks.clear()
        if not self.finished and not self.was_reset:
            self.finished = True
            self.muxed_conn.outbox.put(frames.finish(self.stream_id))
            self._wake_credit_waiter()
            self.muxed_conn.forget_if_over(self)

    async def reset(self) -> None:
        """End both directions at once; nothing more is read or written."""
        self.reset_now()
        await trio.lowlevel.checkpoint()

    def reset_now(self) -> None:
        """The same as `reset`, without a checkpoint."""
        if not self.was_reset and not (self.finished and self.peer_finished):
            self.muxed_conn.outbox.put(frames.reset(self.stream_id))
        self.muxed_conn.abandon(self)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the connection's other side."""
        address: tuple[str, int] | None = self.muxed_conn.get_remote_address()
        return address

    def set_deadline(self, ttl: int) -> None:
        """Not supported: trio's cancel scopes do that."""
        raise NotImplementedError("use a trio cancel scope")

    async def __aenter__(self) -> YamuxStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()
