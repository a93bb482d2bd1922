"""One task reads the sockets of all running answers: a task switch costs more than a token.

The sockets lie in one selector whose own descriptor trio waits on. What arrives is handed to a
callback of the answer it belongs to; the answer's own task wakes only at its end.
"""

from __future__ import annotations

import math
import selectors
import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

RECEIVE_BYTES: Final = 65_536

TURN_BYTES: Final = 65_536
"""Read and parsed, a millisecond's work, before other tasks get a turn."""

GATHER_SECONDS: Final = 0.002
"""How long tokens may gather while they come in quick succession; a lone one never waits."""

MUCH_BYTES: Final = 32_768
"""Read in one turn: no longer single tokens, which are worth waiting for, but a flood."""

FEW_BYTES: Final = 2_048
STREAMS_MANY: Final = 32
"""So many streams that give so little, about eight tokens a turn, are slow ones: each token comes
tens of milliseconds after the one before, and twice the gathering is not felt."""

Take: TypeAlias = Callable[[bytes], bool]
"""Takes what has arrived, nothing when the peer has closed; False means no more for now."""


class _Reading:
    """One socket in the pump."""

    __slots__ = ("connection", "error", "live", "over", "take")

    def __init__(self, connection: socket.socket, take: Take) -> None:
        self.connection = connection
        self.take = take
        self.error: Exception | None = None
        self.live = True
        self.over = trio.Event()


class SocketPump:
    """See the module; one per run of trio, see `socket_pump`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    async def pour(self, connection: socket.socket, take: Take) -> None:
        """Give `take` what arrives until it returns False.

        Args:
            connection: does not block; nobody else reads it meanwhile.
            take: called from another task, must not block; what it raises is raised here.

        Raises:
            OSError: the connection was lost.
        """
        reading = _Reading(connection, take)
        self._selector.register(connection, selectors.EVENT_READ, reading)
        try:
            await reading.over.wait()
        finally:
            self._stop(reading)
        if reading.error is not None:
            raise reading.error

    async def run(self) -> None:
        """Turn until cancelled."""
        last = -math.inf
        with self._selector:
            while True:
                await trio.lowlevel.wait_readable(self._selector.fileno())
                now = trio.current_time()
                read = await self._turn()
                busy = now - last < GATHER_SECONDS
                while busy and read:
                    await self._gather(read)
                    read = await self._turn()
                last = trio.current_time()

    async def _gather(self, read: int) -> None:
        """Let tokens come together, the longer the fewer the last turn has `read` bytes of."""
        if read >= MUCH_BYTES:
            await trio.lowlevel.checkpoint()
        elif read < FEW_BYTES and len(self._selector.get_map()) >= STREAMS_MANY:
            await _nap(2 * GATHER_SECONDS)
        else:
            await _nap(GATHER_SECONDS)

    async def _turn(self) -> int:
        """Read every socket that has something, once; how many bytes there were."""
        read, left = 0, TURN_BYTES
        for key, _ in self._selector.select(0):
            if read >= left:
                await trio.lowlevel.checkpoint()
                left = read + TURN_BYTES
            reading: _Reading = key.data
            if reading.live:  # else it was stopped since
                read += self._read(reading)
        return read

    def _read(self, reading: _Reading) -> int:
        received = b""
        try:
            received = reading.connection.recv(RECEIVE_BYTES)
            if reading.take(received):
                return len(received)
        except BlockingIOError:
            return 0
        except Exception as error:  # noqa: BLE001 (raised again in the request's own task)
            reading.error = error
        self._stop(reading)
        return len(received)

    def _stop(self, reading: _Reading) -> None:
        if reading.live:
            reading.live = False
            self._selector.unregister(reading.connection)
            reading.over.set()


async def _nap(seconds: float) -> None:
    """`trio.sleep` at two thirds of the price: its time's end is no exception in the task."""
    task = trio.lowlevel.current_task()

    def wake(_raise_cancel: object) -> trio.lowlevel.Abort:
        trio.lowlevel.reschedule(task)
        return trio.lowlevel.Abort.FAILED

    with trio.CancelScope(deadline=trio.current_time() + seconds):
        await trio.lowlevel.wait_task_rescheduled(wake)
    # Whether it was the time or a cancellation from outside, `wake` does not know.
    await trio.lowlevel.checkpoint_if_cancelled()


_pumps: Final[trio.lowlevel.RunVar[SocketPump]] = trio.lowlevel.RunVar("socket pump")


def socket_pump() -> SocketPump:
    """The pump of this run of trio; started by the first who asks, it ends with the run."""
    try:
        return _pumps.get()
    except LookupError:
        pump = SocketPump()
        _pumps.set(pump)
        trio.lowlevel.spawn_system_task(pump.run, name="socket pump")
        return pump
