"""Fault: libp2p reads two bytes, then the message, each through a lock and a socket call.

`BufferedTcpStream` reads what is there and hands it out in pieces: that serves the handshake.
Afterwards the muxer takes a `Wire` from it, which reads whole bursts and writes without waiting
as long as the socket's buffer has room.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final, Protocol

import trio

from aimo_node.mesh.fixes.library import ConnectionClosedError, TrioTCPStream
from aimo_node.mesh.fixes.limits import HANDSHAKE_BYTES_MAX

_HANDSHAKE_READ_BYTES: Final = 16 * 1024
_BURST_BYTES: Final = 64 * 1024
"""One read takes at most this much, a full Noise message. Then the others have their turn: so
many bytes of the smallest frames take 10 ms."""


class _BurstBuffer(threading.local):
    """One receive buffer per thread: it is empty again before the next task runs."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_BURST_BYTES))


_burst = _BurstBuffer()


class Wire(Protocol):
    """What the muxer needs from below, once Noise is in place."""

    async def receive(self) -> bytes | memoryview:
        """The next bytes, empty at the end. A view is valid until the next checkpoint."""

    def send_nowait(self, data: bytes) -> int:
        """Send what can be sent without waiting; the number of bytes taken."""

    async def send_some(self, data: bytes) -> int:
        """Wait until something can be sent, send it; the number of bytes taken."""

    def close(self) -> None:
        """Close at once. Whoever waits in `receive` or `send_some` is woken by an error."""


WIRE_ERRORS: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a `Wire` over a socket raises when the connection is gone."""


class BufferedTcpStream(TrioTCPStream):  # type: ignore[misc]
    """A TCP stream with a read-ahead buffer and an address that works for IPv6 too."""

    path = "direct"
    relay = None

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._ahead = bytearray()
        self._handshake_left = HANDSHAKE_BYTES_MAX
        self._remote: tuple[str, int] | None = None
        self.has_spoken = False
        """Whether the other side has sent anything at all."""
        self.on_upgraded: Callable[[], None] | None = None
        """Called once when the handshakes are done and the muxer has taken over."""
        self.on_closed: Callable[[], None] | None = None
        """Called once when the socket is closed, by whomever."""
        with contextlib.suppress(OSError):
            host, port, *_ = stream.socket.getpeername()
            self._remote = (str(host), int(port))

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, empty at the end of the stream."""
        if n == 0:
            return b""
        if not self._ahead:
            if not self._handshake_left:
                raise ConnectionClosedError("a handshake without end", transport="tcp")
            try:
                self._ahead += await self.stream.receive_some(
                    min(_HANDSHAKE_READ_BYTES, self._handshake_left)
                )
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error
            except trio.ClosedResourceError:
                return b""
            self._handshake_left -= len(self._ahead)
            self.has_spoken = True
        return self._take(len(self._ahead) if n is None else n)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._ahead[:count])
        del self._ahead[:count]
        return taken

    async def close(self) -> None:
        """Close the socket; the same as `close_now`, for libp2p."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close the socket without waiting for anything."""
        self.stream.socket.close()
        if self.on_closed is not None:
            callback, self.on_closed = self.on_closed, None
            callback()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other side."""
        return self._remote

    def get_local_address(self) -> tuple[str, int] | None:
        """Host and port of this side."""
        with contextlib.suppress(OSError):
            host, port, *_ = self.stream.socket.getsockname()
            return str(host), int(port)
        return None

    def take_wire(self) -> SocketWire:
        """Hand over to the muxer: nobody may call `read` or `write` from now on."""
        ahead = self._take(len(self._ahead))
        if self.on_upgraded is not None:
            callback, self.on_upgraded = self.on_upgraded, None
            callback()
        return SocketWire(self, ahead)


class SocketWire:
    """A `Wire` straight on the socket: one system call per burst, no lock, no spare copy."""

    def __init__(self, owner: BufferedTcpStream, ahead: bytes) -> None:
        self._owner = owner
        self._ahead = ahead
        self._socket = owner.stream.socket
        self._descriptor: int = self._socket.fileno()
        self._view = _burst.view
        self._buffers = [self._view]

    async def receive(self) -> bytes | memoryview:
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            return ahead
        while True:
            # Waiting first saves the read that would mostly find nothing.
            await trio.lowlevel.wait_readable(self._socket)
            try:
                count = os.readv(self._open_descriptor(), self._buffers)
            except BlockingIOError:
                continue
            return self._view[:count]

    def send_nowait(self, data: bytes) -> int:
        try:
            return os.write(self._open_descriptor(), data)
        except BlockingIOError:
            return 0

    async def send_some(self, data: bytes) -> int:
        while True:
            await trio.lowlevel.wait_writable(self._socket)
            sent = self.send_nowait(data)
            if sent:
                return sent

    def close(self) -> None:
        self._owner.close_now()

    def _open_descriptor(self) -> int:
        # A closed descriptor's number may already belong to somebody else's file.
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the connection was closed")
        return self._descriptor
