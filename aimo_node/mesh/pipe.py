"""A byte stream inside the process: how a node reaches its own provider, and what tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import NetworkError

PIPE_BYTES_MAX: Final = 1024 * 1024
"""What one side may have written before the other reads: as much as a socket buffers."""


class _Channel:
    """Bytes in one direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False
        self.waiting = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        """No more bytes; those that are there can still be read."""
        self.closed = True
        self.waiting.unpark_all()


class PipeEnd:
    """One end of a pipe; satisfies `link.ByteStream`. A call that is cancelled has done nothing."""

    def __init__(
        self, peer: PeerId, incoming: _Channel, outgoing: _Channel, *, initiator: bool
    ) -> None:
        self.peer = peer
        self.initiator = initiator
        self.remote_address = "local"
        self.path = "direct"
        self.relay: PeerId | None = None
        self.reason = "dialled" if initiator else "dialled us"
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self, max_bytes: int = 65_536) -> bytes:
        """What has arrived; empty at the end."""
        channel = self._incoming
        while not channel.data and not channel.closed:
            await channel.waiting.park()
        data = bytes(channel.data[:max_bytes])
        del channel.data[:max_bytes]
        channel.waiting.unpark_all()
        return data

    async def deliver(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what arrives to `sink`, until that returns false or at the end."""
        while (data := await self.read()) and sink(data):
            pass

    async def write(self, data: bytes) -> None:
        """Write all of `data`; waits while the other side does not read. Not always a checkpoint.

        Raises:
            NetworkError: the pipe is closed.
        """
        while not self.write_nowait(data):
            await self._outgoing.waiting.park()

    def write_nowait(self, data: bytes) -> bool:
        """Write all of `data` if there is room; whether it was written.

        Raises:
            NetworkError: the pipe is closed.
        """
        channel = self._outgoing
        if channel.closed:
            raise NetworkError("the pipe is closed")
        if len(channel.data) >= PIPE_BYTES_MAX:
            return False
        channel.data += data
        channel.waiting.unpark_all()
        return True

    async def close(self) -> None:
        """End both directions; what was written can still be read."""
        self._incoming.close()
        self._outgoing.close()

    async def reset(self) -> None:
        """End both directions and drop what was not read."""
        self._incoming.data.clear()
        self._outgoing.data.clear()
        await self.close()


def open_pipe(first: PeerId, second: PeerId) -> tuple[PipeEnd, PipeEnd]:
    """The end that `first` holds, as initiator, and the end that `second` holds."""
    forth, back = _Channel(), _Channel()
    return (
        PipeEnd(second, back, forth, initiator=True),
        PipeEnd(first, forth, back, initiator=False),
    )
