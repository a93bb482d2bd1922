"""The other side of a `YamuxConnection`, on a wire that the test holds in its hands."""

from __future__ import annotations

from types import SimpleNamespace

import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.limits import HostLimits
from aimo_node.mesh.fixes.noise_messages import MessageOpener, MessageSealer
from aimo_node.mesh.fixes.yamux_messages import YamuxConnection
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

KEY = b"k" * 32


class FakeWire:
    """A wire whose other end is the test; takes everything until it is told to block."""

    def __init__(self) -> None:
        self.to_connection, self._incoming = trio.open_memory_channel[bytes](1000)
        self.sent = bytearray()
        self.blocked = False
        self.closed = False
        self._unblocked = trio.Event()

    async def receive(self) -> bytes:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            return b""

    def send_nowait(self, data: bytes) -> int:
        if self.blocked:
            return 0
        self.sent += data
        return len(data)

    async def send_some(self, data: bytes) -> int:
        while self.blocked:
            await self._unblocked.wait()
        return self.send_nowait(data)

    def unblock(self) -> None:
        self.blocked = False
        self._unblocked.set()

    def close(self) -> None:
        self.closed = True
        self.to_connection.close()


class Peer:
    """The other side of a `YamuxConnection`: it may send any frame it likes."""

    def __init__(self, limits: HostLimits) -> None:
        self.wire = FakeWire()
        self._sealer = MessageSealer(KEY, 0)
        self._opener = MessageOpener(KEY, 0)
        cipher = SimpleNamespace(k=KEY, n=0)
        ciphers = SimpleNamespace(cipher_state_encrypt=cipher, cipher_state_decrypt=cipher)
        noise = SimpleNamespace(noise_state=SimpleNamespace(noise_protocol=ciphers))
        session = SimpleNamespace(
            conn=noise,
            is_initiator=False,
            _drain=lambda _: b"",
            get_remote_address=lambda: None,
        )
        tcp = SimpleNamespace(take_wire=lambda: self.wire, path="direct", relay=None)
        named = SimpleNamespace(to_base58=lambda: "peer")
        self.connection = YamuxConnection(session, tcp, named, limits)

    async def send(self, *packets: bytes) -> None:
        """Send frames, all in one Noise message, and let the connection digest them."""
        await self.send_raw(self.seal(b"".join(packets)))

    def seal(self, packet: bytes) -> bytes:
        """One Noise message."""
        return self._sealer.seal(packet)

    async def send_raw(self, data: bytes) -> None:
        self.wire.to_connection.send_nowait(data)
        await wait_all_tasks_blocked()

    def received(self) -> list[tuple[int, int, int, int, bytes]]:
        """Every frame since the last call: kind, flags, stream, length, body."""
        plain = b"".join(self._opener.open(bytes(self.wire.sent)))
        self.wire.sent.clear()
        found = []
        while plain:
            _, kind, flags, stream, length = frames.HEADER.unpack_from(plain)
            end = frames.HEADER_BYTES + (length if kind == frames.DATA else 0)
            found.append((kind, flags, stream, length, plain[frames.HEADER_BYTES : end]))
            plain = plain[end:]
        return found

    async def open(self, stream_id: int = 1) -> YamuxStream:
        """Open a stream to the connection and take the connection's end of it."""
        await self.send(frames.window_update(stream_id, 0, frames.SYN))
        return await self.connection.accept_stream()
