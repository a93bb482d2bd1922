"""Fault: a write that is cancelled, or interleaved with another, kills the connection.

An `Outbox` takes whole Yamux frames. What the socket has room for leaves at once, in the task
of the writer and without a checkpoint; the rest is joined into as few Noise messages as
possible and sent by one task that nobody cancels while the connection lives.
"""

from __future__ import annotations

from collections import deque

import trio

from aimo_node.mesh.fixes.limits import SEND_BUFFER_BYTES_MAX
from aimo_node.mesh.fixes.noise_messages import PLAINTEXT_BYTES_MAX, MessageSealer
from aimo_node.mesh.fixes.read_ahead import Wire


class PeerStalled(Exception):  # noqa: N818 (a fact about the peer)
    """The peer has taken nothing for longer than a write may take."""


class Outbox:
    """The sending half of one connection; `put` may be called by any task of it."""

    def __init__(self, wire: Wire, sealer: MessageSealer, write_seconds_max: float) -> None:
        self._wire = wire
        self._sealer = sealer
        self._write_seconds_max = write_seconds_max
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._unsent = b""
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def is_blocked(self) -> bool:
        """Whether anything waits for the socket."""
        return bool(self._unsent)

    @property
    def is_full(self) -> bool:
        """Whether writers have to wait before they put more."""
        return self._frames_bytes >= SEND_BUFFER_BYTES_MAX

    def put(self, frame: bytes) -> None:
        """Send `frame` after everything put before it; never waits, never splits it.

        Errors of the socket show in `run`, not here: the frame is then lost like the connection.
        """
        if self._closed:
            return
        if self._unsent:
            self._frames.append(frame)
            self._frames_bytes += len(frame)
            return
        sealed = self._sealer.seal(frame)
        try:
            sent = self._wire.send_nowait(sealed)
        except (OSError, trio.ClosedResourceError):
            sent = 0  # `run` meets the same error and ends the connection
        if sent < len(sealed):
            self._unsent = sealed[sent:]
            self._work.set()

    async def wait_for_room(self) -> None:
        """Wait while the buffer is full. Returns, too, when the connection is lost."""
        while self.is_full and not self._closed:
            await self._room.park()

    async def drain(self) -> None:
        """Wait until everything has left. Returns, too, when the connection is lost."""
        while self._unsent and not self._closed:
            await self._room.park()

    async def run(self) -> None:
        """Send what did not leave at once, until cancelled.

        Raises:
            PeerStalled: nothing could be sent for `write_seconds_max`.
            OSError, trio.ClosedResourceError: the connection is gone.
        """
        while True:
            await self._work.wait()
            while self._unsent:
                await self._send_some()
                self._refill()
            self._work = trio.Event()

    def close(self) -> None:
        """Drop everything and release everybody who waits."""
        self._closed = True
        self._frames.clear()
        self._frames_bytes = 0
        self._unsent = b""
        self._room.unpark_all()

    async def _send_some(self) -> None:
        with trio.move_on_after(self._write_seconds_max) as scope:
            sent = await self._wire.send_some(self._unsent)
            self._unsent = self._unsent[sent:]
        if scope.cancelled_caught:
            raise PeerStalled(f"the peer took nothing for {self._write_seconds_max:g} s")

    def _refill(self) -> None:
        if not self._unsent and self._frames:
            self._unsent = self._sealer.seal(self._next_plaintext())
        if self._room and not self.is_full:
            self._room.unpark_all()

    def _next_plaintext(self) -> bytes:
        joined = [self._frames.popleft()]
        size = len(joined[0])
        while self._frames and size + len(self._frames[0]) <= PLAINTEXT_BYTES_MAX:
            frame = self._frames.popleft()
            joined.append(frame)
            size += len(frame)
        self._frames_bytes -= size
        return joined[0] if len(joined) == 1 else b"".join(joined)
