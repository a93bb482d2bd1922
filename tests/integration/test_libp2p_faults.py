"""Each fault of libp2p that a link would notice, against a node in another process."""

import hashlib
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from aimo_node.errors import ConfigError, NetworkError
from aimo_node.mesh.fixes.yamux_messages import YamuxConnection
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair, load_identity
from tests.integration.libp2p_child import COUNT, eventually, start_child

QUICK = HostLimits(write_seconds_max=2.0)


async def ignore(stream) -> None:
    """Take no streams."""


@asynccontextmanager
async def node(limits=HostLimits(), listen=(), seed=b"n" * 32, on_stream=ignore):  # noqa: B008 (frozen)
    """A host of this process."""
    identity = KeyPair.from_seed(seed)
    async with MeshHost(identity, listen, limits=limits, on_stream=on_stream) as host:
        yield host


async def answers(host: MeshHost, child) -> bool:
    """Whether a new stream to the child works from end to end."""
    with trio.fail_after(5):
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"E" + b"hello")
        echoed = b""
        while len(echoed) < 5:
            echoed += await stream.read()
        await stream.close()
    return echoed == b"hello"


async def read_exactly(stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        assert more, "the stream ended early"
        data += more
    return data


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


async def test_a_dial_does_not_wait_a_quarter_of_a_second():
    async with start_child() as child:
        durations = []
        for number in range(3):
            async with node(seed=bytes([number]) * 32) as host:
                started = trio.current_time()
                await host.dial(child.peer, child.addresses)
                durations.append(trio.current_time() - started)
        assert min(durations) < 0.2


async def test_a_failed_dial_does_not_block_the_peer(tmp_path: Path):
    identity = load_identity(tmp_path / "key")
    async with start_child() as stranger:
        port = stranger.port
    address = f"/ip4/127.0.0.1/tcp/{port}"
    async with node() as host:
        with pytest.raises(NetworkError, match="refused"):
            await host.dial(identity.peer_id, [address])
        async with start_child(listen=address, key=str(tmp_path / "key")) as child:
            assert child.peer == identity.peer_id
            assert await answers(host, child)


async def test_every_address_gets_its_chance():
    """libp2p tries one address per transport, and none on loopback if there are others."""
    async with start_child() as child, node() as host:
        nowhere = ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip4/127.0.0.2/tcp/1"]
        stream = await host.dial(child.peer, [*nowhere, *child.addresses])
        assert stream.peer == child.peer


async def test_another_peer_at_the_address_is_not_taken_for_the_right_one():
    async with start_child() as child, node() as host:
        missing = KeyPair.from_seed(b"m" * 32).peer_id
        plain = [address.partition("/p2p/")[0] for address in child.addresses]
        with pytest.raises(NetworkError, match="another peer answered"):
            await host.dial(missing, plain)
        with pytest.raises(NetworkError, match="no address to dial"):
            await host.dial(missing, child.addresses)
        assert await answers(host, child)


async def test_a_peer_that_never_answers_is_given_up_at_the_deadline():
    silent = trio.socket.socket()
    await silent.bind(("127.0.0.1", 0))
    silent.listen()
    address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
    async with node(HostLimits(dial_seconds_max=1.0)) as host:
        with pytest.raises(NetworkError, match="did not answer within 1 s"), trio.fail_after(5):
            await host.dial(KeyPair.from_seed(b"m" * 32).peer_id, [address])
    silent.close()


async def test_our_yamux_is_the_one_in_use():
    async with start_child() as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        assert isinstance(stream._stream.muxed_conn, YamuxConnection)


async def test_connections_that_are_over_free_their_slots():
    """libp2p accepts `max_connections` over its whole life and then nobody any more."""
    limits = {"connections_max": 4}
    async with start_child(limits=limits) as child:
        for number in range(10):
            async with node(seed=bytes([number]) * 32) as host:
                assert await answers(host, child)


async def test_a_connection_without_a_link_is_closed():
    async with start_child(limits={"unlinked_seconds_max": 0.4}) as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"E")
        linked_until = trio.current_time() + 1.0
        while trio.current_time() < linked_until:
            assert host.connected_peers() == [child.peer]
            await trio.sleep(0.1)
        await stream.close()
        await eventually(lambda: not host.connected_peers(), 5)


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


async def test_a_port_in_use_is_refused_at_the_start():
    """libp2p would share the port with the other node, and each get half of the connections."""
    async with start_child() as child:
        with pytest.raises(ConfigError, match="choose another address with --listen"):
            async with node(listen=[f"/ip4/127.0.0.1/tcp/{child.port}"]):
                pass


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/udp/0/quic-v1", "/dns4/a/tcp/1"])
async def test_an_address_that_cannot_be_listened_on_is_a_configuration_error(address):
    with pytest.raises(ConfigError):
        async with node(listen=[address]):
            pass


async def test_a_cancelled_host_leaves_no_listener_behind():
    with trio.CancelScope() as scope:
        async with node(listen=["/ip4/127.0.0.1/tcp/0"]) as host:
            port = int(host.addresses()[0].split("/")[4])
            scope.cancel()
            await trio.sleep_forever()
    with pytest.raises(OSError, match=r"refused|connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_many_connections_close_together_at_the_end():
    """Each takes libp2p a tenth of a second."""
    ready = []

    async def spoke(number: int, hub: MeshHost) -> None:
        async with node(seed=bytes([number]) * 32) as host:
            await host.dial(hub.peer_id, hub.addresses())
            ready.append(number)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with node(listen=["/ip4/127.0.0.1/tcp/0"]) as hub:
            for number in range(30):
                nursery.start_soon(spoke, number, hub)
            await eventually(lambda: len(ready) == 30, 20)
            started = trio.current_time()
        assert trio.current_time() - started < 2.5
        nursery.cancel_scope.cancel()


async def test_wildcard_addresses_are_spelled_out_with_loopback_last():
    async with node(listen=["/ip4/0.0.0.0/tcp/0"]) as host:
        addresses = host.addresses()
        assert not any("0.0.0.0" in address for address in addresses)
        assert "/ip4/127.0.0.1/" in addresses[-1]
        assert all(address.endswith(f"/p2p/{host.peer_id}") for address in addresses)
