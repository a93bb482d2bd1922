"""What a socket has is read at once, not two bytes and then the rest."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream


class CountingStream:
    """A socket's stream that notes how often somebody asks the system."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.socket = stream.socket
        self.calls = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.calls += 1
        return await self.stream.receive_some(max_bytes)


async def pair() -> tuple[BufferedTcpStream, CountingStream, trio.SocketStream]:
    listening = trio.socket.socket()
    await listening.bind(("127.0.0.1", 0))
    listening.listen()
    far = await trio.open_tcp_stream(*listening.getsockname())
    accepted, _ = await listening.accept()
    listening.close()
    near = CountingStream(trio.SocketStream(accepted))
    return BufferedTcpStream(near), near, far


async def arrived(near: CountingStream, count: int) -> None:
    """Until so many bytes lie in the socket."""
    with trio.fail_after(5):
        while len(await near.socket.recv(count, socket.MSG_PEEK)) < count:
            await trio.lowlevel.checkpoint()


async def test_the_pieces_of_a_handshake_cost_one_call() -> None:
    stream, near, far = await pair()
    async with near.stream, far:
        message = (100).to_bytes(2, "big") + b"x" * 100
        await far.send_all(message * 3)
        await arrived(near, len(message) * 3)
        for _ in range(3):
            assert await stream.read(2) == b"\x00\x64"
            assert await stream.read(100) == b"x" * 100
        assert near.calls == 1


async def test_a_burst_of_messages_costs_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, near, far = await pair()
    reads = []

    def count(descriptor: int, buffers: list[memoryview]) -> int:
        reads.append(descriptor)
        return readv(descriptor, buffers)

    readv = os.readv
    monkeypatch.setattr(os, "readv", count)
    async with near.stream, far:
        await far.send_all(b"m" * 102 * 300)
        await arrived(near, 102 * 300)
        assert bytes(await stream.take_wire().receive()) == b"m" * 102 * 300
        assert len(reads) == 1


async def test_what_the_handshake_read_too_far_is_the_first_burst() -> None:
    stream, near, far = await pair()
    async with near.stream, far:
        await far.send_all(b"handshakefirst")
        await arrived(near, 14)
        assert await stream.read(9) == b"handshake"
        assert await stream.take_wire().receive() == b"first"
