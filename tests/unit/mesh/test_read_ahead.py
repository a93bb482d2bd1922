"""What a socket gives to libp2p's handshakes."""

import pytest
import trio

from aimo_node.mesh.fixes.library import ConnectionClosedError
from aimo_node.mesh.fixes.limits import HANDSHAKE_BYTES_MAX
from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream


async def test_a_handshake_without_end_is_cut_off():
    """Whoever connects could else fill the memory for as long as a handshake may take."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    stranger = await trio.open_tcp_stream(*listener.socket.getsockname())
    stream = BufferedTcpStream(await listener.accept())
    await listener.aclose()
    read = 0

    async def read_all() -> None:
        nonlocal read
        while True:
            read += len(await stream.read(10**9))

    async with stranger, trio.open_nursery() as nursery:
        nursery.start_soon(stranger.send_all, b"x" * 10_000_000)
        with trio.fail_after(5), pytest.raises(ConnectionClosedError):
            await read_all()
        nursery.cancel_scope.cancel()
    assert read <= HANDSHAKE_BYTES_MAX
    await stream.close()
