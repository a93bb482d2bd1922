"""Each fault of libp2p that a link would notice, against a node in another process."""

import hashlib
import signal

import pytest
import trio
import trio.testing

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES
from aimo_node.mesh.fixes.yamux_messages import YamuxConnection
from aimo_node.mesh.host import HostLimits
from tests.integration.libp2p_child import COUNT, eventually
from tests.integration.libp2p_parties import answers, node, read_exactly, start_child

QUICK = HostLimits(write_seconds_max=2.0)


async def test_a_cancelled_read_loses_nothing_and_harms_nobody():
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"N")
        received = bytearray()
        cancelled = 0
        while cancelled < 200 or len(received) < 100_000:
            with trio.move_on_after(0.0005) as scope:
                received += await stream.read(700)
            cancelled += scope.cancelled_caught
        for number in range(len(received) // 800):
            assert received[number * 800 : number * 800 + 8] == COUNT.pack(number)
        assert await answers(host, child)


async def test_a_cancelled_write_is_whole_and_harms_nobody():
    """The writer is cancelled while the slow reader lets nothing through."""
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        blocks = [bytes([number]) * 60_000 for number in range(60)]
        await stream.write(b"P" + COUNT.pack(1) + COUNT.pack(sum(map(len, blocks))))
        cancelled = 0
        for block in blocks:
            with trio.move_on_after(0.01):
                await stream.write(block)
                await trio.lowlevel.checkpoint_if_cancelled()
                continue
            cancelled += 1
        assert cancelled > 0
        digest = await read_exactly(stream, 32)
        assert digest == hashlib.sha256(b"".join(blocks)).digest()
        assert await answers(host, child)


async def test_an_exception_in_a_handler_costs_only_its_stream():
    async with start_child() as child, node() as host:
        other = await host.dial(child.peer, child.addresses)
        await other.write(b"E")
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"X")
        with pytest.raises(NetworkError), trio.fail_after(5):
            await stream.read()
        await other.write(b"still here")
        assert await read_exactly(other, 10) == b"still here"
        assert child.is_alive
        assert "this handler always fails" in child.errors.read_text()


async def test_writes_of_two_tasks_do_not_interleave():
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"E")

        async def write_blocks(letter: bytes) -> None:
            for _ in range(40):
                await stream.write(letter * 64_000)

        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_blocks, b"a")
            nursery.start_soon(write_blocks, b"b")
            while len(received) < 80 * 64_000:
                await (
                    trio.lowlevel.checkpoint()
                )  # lets credit run out, so that writes come in pieces
                received += await stream.read(10_000)
        for number in range(80):
            block = received[number * 64_000 : (number + 1) * 64_000]
            assert len(set(block)) == 1


async def test_a_write_that_waits_for_credit_is_not_overtaken():
    """In the moment when credit has come, and its task has not had its turn yet."""
    async with start_child() as child, node() as host, trio.open_nursery() as nursery:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"P" + COUNT.pack(60))
        nursery.start_soon(stream._stream.write, b"x" * 2 * RECEIVE_WINDOW_BYTES)
        await trio.testing.wait_all_tasks_blocked(0.05)
        stream._stream.gain_credit(1000)
        assert not stream.write_nowait(b"me first")
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_stalls_its_writer_and_loses_nothing():
    """libp2p gives up after five seconds without credit."""
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        block = b"s" * 64_000
        await stream.write(b"P" + COUNT.pack(6) + COUNT.pack(64 * len(block)))
        for _ in range(64):
            await stream.write(block)
        assert await read_exactly(stream, 32) == hashlib.sha256(block * 64).digest()


async def test_a_peer_has_a_limited_number_of_streams():
    async with start_child(limits={"inbound_streams_max": 6}) as child, node() as host:
        streams = []
        for _ in range(6):
            streams.append(await host.dial(child.peer, child.addresses))
            await streams[-1].write(b"E")
        connection = streams[0]._stream.muxed_conn
        excess = await connection.open_stream()
        with pytest.raises(Exception, match="reset"), trio.fail_after(5):
            await excess.read()
        await streams[0].write(b"others go on")
        assert await read_exactly(streams[0], 12) == b"others go on"
        await streams[0].close()
        assert await streams[0].read() == b""
        assert await answers(host, child)


async def test_our_yamux_is_the_one_in_use():
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        assert isinstance(stream._stream.muxed_conn, YamuxConnection)


async def test_a_killed_peer_is_noticed_at_once():
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"E")
        child.signal(signal.SIGKILL)
        with pytest.raises(NetworkError), trio.fail_after(1):
            await stream.read()
        await eventually(lambda: not host.connected_peers(), 2)


async def test_a_stopped_peer_ends_the_write_at_its_deadline():
    async with start_child() as child, node(QUICK) as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"S" + COUNT.pack(1 << 40))
        child.signal(signal.SIGSTOP)
        with pytest.raises(NetworkError), trio.fail_after(10):
            await write_for_ever(stream)
        await eventually(lambda: not host.connected_peers(), 2)


async def test_a_peer_that_never_reads_ends_the_write_at_its_deadline():
    """The peer lives and its connection works, but the stream has no credit left."""
    async with start_child() as child, node(QUICK) as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"P" + COUNT.pack(60))
        with pytest.raises(NetworkError, match="took nothing for 2 s"), trio.fail_after(10):
            await write_for_ever(stream)
        assert await answers(host, child)


async def write_for_ever(stream) -> None:
    while True:
        await stream.write(b"x" * 64_000)
