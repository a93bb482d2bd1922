"""One accepted socket: bytes to and from a consumer, plain or through TLS.

A write tries the socket at once and enters trio only when the kernel's buffer is full. Whoever
stops reading is cut after a time limit; a write never waits for ever, not even in a shielded scope.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct

import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

from aimo_node.edge.serving.tls import TlsCodec

RECEIVE_BYTES = 65_536
"""Taken from the kernel at one time: more only moves the queue from the kernel's memory to ours."""
WRITES_PER_CHECKPOINT = 16
"""A producer that never waits for anything would starve all other tasks; 16 writes take about 100
µs."""
SEND_BUFFER_BYTES = 100_000
"""Kernel memory for a consumer that does not read (the kernel doubles it). Left to itself it grows
to megabytes, and then there is no room left to grow for the last words below."""
SEND_BUFFER_LAST_BYTES = 212_992
"""Once the grace period is over a stalled consumer's buffer grows to this, the most that an
unprivileged process may ask for on a stock Linux: the rest of a half-written chunk and a final
error event then still leave our hands."""
CANCELLED_SECONDS = 0.5
"""For the rest of a half-sent message when its sender is cancelled: at its end the sender may still
say why (a final error event), in its middle only closing is left."""
_NOTHING = memoryview(b"")
_HUNG_UP = getattr(select, "POLLRDHUP", 0)
_DISCARD = struct.pack("ii", 1, 0)


class Transport:
    """Reads and writes one socket. One task reads; several may write, whole messages at a time.

    Once `closed`, reads return nothing and writes do nothing: the owner notices by reading.
    """

    __slots__ = (
        "_fileno",
        "_lock",
        "_rest",
        "_socket",
        "_stall_seconds",
        "_tls",
        "_writes",
        "closed",
    )

    def __init__(
        self, accepted: socket.socket, context: ssl.SSLContext | None, stall_seconds: float
    ) -> None:
        accepted.setblocking(False)  # noqa: FBT003 (the standard library's way)
        self.closed = False
        self._socket = accepted
        self._fileno = accepted.fileno()
        self._tls = None if context is None else TlsCodec(context)
        self._stall_seconds = stall_seconds
        self._lock = trio.Lock()
        self._writes = 0
        self._rest = _NOTHING  # of the message that waits for the kernel

    async def handshake(self) -> bool:
        """Completes TLS, if there is any; False when it cannot be. The caller limits the time."""
        if self._tls is None:
            return True
        received = b""
        while True:
            try:
                done = self._tls.handshake(received)
            except ssl.SSLError:
                self._send_now(self._tls.pending())  # the alert that says why
                return False
            if not self._send_now(self._tls.pending()):
                return False  # a few kilobytes do not fit into a fresh buffer: no honest consumer
            if done:
                return True
            received = await self._receive_raw()
            if not received:
                return False

    async def receive(self) -> bytes:
        """The next bytes of the consumer; none once it has closed its side or is gone."""
        while True:
            data = await self._receive_raw()
            if self._tls is None or not data:
                return data
            try:
                data, ended = self._tls.open(data)
            except ssl.SSLError:
                return b""
            if data or ended:
                return data

    async def write(self, data: bytes) -> None:
        """Sends all of `data`, or closes the connection when the consumer is gone or stalls.

        A cancelled write is over within half a second: all of the message is out, or nothing, or
        the connection is closed.
        """
        if self._lock.locked():
            await self._write_in_turn(data)
            return
        try:
            if self._tls is not None:
                data = self._tls.seal(data)
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # ssl.SSLError is one
            self.close()
            await checkpoint()  # the reader has to notice, though the producer never waits
            return
        if sent == len(data):
            self._writes += 1
            if not self._writes % WRITES_PER_CHECKPOINT:
                await checkpoint()
            return
        self._lock.acquire_nowait()
        await self._write_rest(memoryview(data)[sent:])

    def write_nowait(self, data: bytes) -> bool:
        """Sends `data` if all of it fits into the kernel's buffer; whether it did."""
        if self._lock.locked() or self.closed:
            return False
        try:
            return self._send_now(data if self._tls is None else self._tls.seal(data))
        except ssl.SSLError:
            return False

    def finish(self) -> None:
        """Says that nothing more will be sent; reading goes on."""
        if self.closed:
            return
        if self._tls is not None and not self._lock.locked():
            self._send_now(self._tls.close_notify())
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close(self, *, discard: bool = False) -> None:
        """Closes the socket at once and wakes whoever waits for it.

        `discard` drops what the kernel still holds and resets the connection: for a consumer that
        does not read.
        """
        if self.closed:
            return
        self.closed = True
        if discard:
            with contextlib.suppress(OSError):  # already reset by the consumer
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        notify_closing(self._fileno)
        self._socket.close()

    def has_hung_up(self) -> bool:
        """Whether the consumer closed or reset, even where unread bytes hide that from a read.

        Always False where the system cannot tell (it takes Linux's POLLRDHUP).
        """
        if self.closed or _HUNG_UP == 0:
            return self.closed
        poll = select.poll()
        poll.register(self._socket, _HUNG_UP)
        return bool(poll.poll(0))

    def widen_if_stalled(self) -> None:
        """Makes room in the kernel for the last words to a consumer that does not read."""
        if self._lock.locked() and not self.closed:
            with contextlib.suppress(OSError):  # not worth a word: the connection ends anyway
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_LAST_BYTES)

    async def _write_in_turn(self, data: bytes) -> None:
        await self._lock.acquire()
        try:
            sealed = data if self._tls is None else self._tls.seal(data)
        except ssl.SSLError:
            self._lock.release()
            self.close()
            return
        await self._write_rest(memoryview(sealed))

    async def _write_rest(self, rest: memoryview) -> None:
        """Sends `rest` as the kernel takes it; the lock is held on entry and released at the
        end."""
        self._rest = rest
        try:
            await self._push_rest()
        except trio.Cancelled:
            with trio.move_on_after(CANCELLED_SECONDS) as last:
                last.shield = True
                await self._push_rest()
            if self._rest:
                self.close(discard=True)
            raise
        finally:
            self._rest = _NOTHING
            self._lock.release()

    async def _push_rest(self) -> None:
        try:
            while self._rest and not self.closed:
                with trio.move_on_after(self._stall_seconds) as patience:
                    await wait_writable(self._fileno)
                if patience.cancelled_caught:
                    self.close(discard=True)
                    return
                with contextlib.suppress(BlockingIOError):
                    self._rest = self._rest[self._socket.send(self._rest) :]
        except (OSError, trio.ClosedResourceError):
            self.close()

    def _send_now(self, sealed: bytes) -> bool:
        if not sealed:
            return True
        try:
            return self._socket.send(sealed) == len(sealed)
        except OSError:
            return False

    async def _receive_raw(self) -> bytes:
        while not self.closed:
            try:
                await wait_readable(self._fileno)
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                break
        return b""
