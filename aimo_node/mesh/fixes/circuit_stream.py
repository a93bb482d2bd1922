"""Fault: libp2p runs a relayed connection through the same slow path as any other, and our Yamux
takes over sockets only.

`CircuitStream` is what a connection through a relay runs on: a stream to the relay, in the place of
the TCP stream. Noise and Yamux run on it end to end, so that a relay carries what it cannot read.
"""

from __future__ import annotations

from typing import Final

import trio

from aimo_node.mesh.fixes.library import (
    ConnectionClosedError,
    MuxedStreamEOF,
    MuxedStreamError,
    ReadWriteCloser,
)
from aimo_node.mesh.fixes.limits import HANDSHAKE_BYTES_MAX
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

_BURST_BYTES: Final = 64 * 1024
"""One read takes at most this much, as from a socket."""


class CircuitStream(ReadWriteCloser):  # type: ignore[misc]
    """One end of a circuit, once the relay has connected it."""

    path = "circuit"

    def __init__(self, stream: YamuxStream) -> None:
        self._stream = stream
        self._handshake_left = HANDSHAKE_BYTES_MAX
        self.relay = stream.muxed_conn.peer_id
        """Who carries it."""
        self.closed = trio.Event()
        """Set when this end is closed, by whomever."""

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, empty at the end of the stream."""
        if not self._handshake_left:
            raise ConnectionClosedError("a handshake without end", transport="circuit")
        most = self._handshake_left if n is None else min(n, self._handshake_left)
        try:
            data = await self._stream.read(most)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as error:
            raise ConnectionClosedError(str(error), transport="circuit") from error
        self._handshake_left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send `data` whole."""
        try:
            await self._stream.write(data)
        except MuxedStreamError as error:
            raise ConnectionClosedError(str(error), transport="circuit") from error

    async def close(self) -> None:
        """End the circuit; the same as `close_now`, for libp2p."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """End the circuit without waiting: what was sent still arrives."""
        self._stream.finish(discard=True)
        self.closed.set()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Unknown: only the relay sees it."""
        return None

    def get_local_address(self) -> tuple[str, int] | None:
        """None: it begins at the relay."""
        return None

    def take_wire(self) -> CircuitWire:
        """Hand over to the muxer: nobody may call `read` or `write` from now on."""
        return CircuitWire(self, self._stream)


class CircuitWire:
    """A `Wire` on a stream to the relay."""

    def __init__(self, owner: CircuitStream, stream: YamuxStream) -> None:
        self._owner = owner
        self._stream = stream

    async def receive(self) -> bytes:
        # as a socket does: whoever sends small frames must not keep the node to itself
        await trio.lowlevel.checkpoint()
        try:
            return await self._stream.read(_BURST_BYTES)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as error:
            raise trio.BrokenResourceError("the circuit broke off") from error

    def send_nowait(self, data: bytes) -> int:
        try:
            return self._stream.write_some_nowait(data)
        except MuxedStreamError as error:
            raise trio.ClosedResourceError("the circuit broke off") from error

    async def send_some(self, data: bytes) -> int:
        try:
            return await self._stream.write_some(data)
        except MuxedStreamError as error:
            raise trio.BrokenResourceError("the circuit broke off") from error

    def close(self) -> None:
        self._owner.close_now()
