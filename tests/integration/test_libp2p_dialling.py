"""Dialling and listening: what libp2p delays, forgets, shares or keeps for too long."""

import signal
from pathlib import Path

import pytest
import trio

from aimo_node.errors import ConfigError, NetworkError
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair, load_identity
from tests.integration.libp2p_child import eventually
from tests.integration.libp2p_parties import answers, node, start_child

pytestmark = pytest.mark.alone


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


async def test_an_unchanged_libp2p_answers_us():
    async with start_child(unchanged=True) as child, node() as host:
        stream = await host.dial(child.peer, child.addresses)
        question = bytes(range(250)) * 250
        received = bytearray()

        async def ask() -> None:
            for _ in range(20):
                await stream.write(question)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while len(received) < 20 * len(question):
                received += await stream.read()
        assert received == question * 20
        await stream.close()


async def test_an_unchanged_libp2p_reaches_us():
    async def echo(stream) -> None:
        while data := await stream.read(60_000):
            await stream.write(data)

    async with (
        node(listen=["/ip4/127.0.0.1/tcp/0"], on_stream=echo) as host,
        start_child(unchanged=True, dial=host.addresses()) as child,
    ):
        with trio.fail_after(10):
            assert await child.next_line() == {"echoed": True}
        assert host.connected_peers() == [child.peer]


@pytest.mark.parametrize(
    ("listen", "name"), [("/ip6/::1/tcp/0", "ip6/::1"), ("/ip4/127.0.0.1/tcp/0", "dns/localhost")]
)
async def test_ipv6_and_host_names_are_dialled(listen, name):
    async with start_child(listen) as child, node() as host:
        stream = await host.dial(child.peer, [f"/{name}/tcp/{child.port}"])
        assert stream.remote_address == child.addresses[0].partition("/p2p/")[0]


async def test_an_unknown_host_name_is_a_network_error():
    async with node() as host:
        with pytest.raises(NetworkError):
            await host.dial(KeyPair.from_seed(b"m" * 32).peer_id, ["/dns4/no.invalid/tcp/1"])


async def test_two_nodes_that_dial_each_other_at_once_both_get_a_stream():
    met = []

    async def meet(stream) -> None:
        met.append(stream.peer)
        await stream.read()

    async with (
        node(listen=["/ip4/127.0.0.1/tcp/0"], on_stream=meet, seed=b"1" * 32) as one,
        node(listen=["/ip4/127.0.0.1/tcp/0"], on_stream=meet, seed=b"2" * 32) as two,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one.dial, two.peer_id, two.addresses())
        nursery.start_soon(two.dial, one.peer_id, one.addresses())
        await eventually(lambda: sorted(met) == sorted([one.peer_id, two.peer_id]), 5)


async def test_concurrent_dials_to_one_peer_share_a_connection():
    async with start_child() as child, node() as host:
        streams = []

        async def dial() -> None:
            streams.append(await host.dial(child.peer, child.addresses))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(dial)
        assert len({id(stream._stream.muxed_conn) for stream in streams}) == 1


async def test_a_restarted_peer_is_reached_over_a_new_connection(tmp_path: Path):
    """The old connection may look alive when the peer is dialled again."""
    key = str(tmp_path / "key")
    async with node(HostLimits(negotiation_seconds_max=1.0, dial_seconds_max=2.0)) as host:
        async with start_child(key=key) as child:
            address = f"/ip4/127.0.0.1/tcp/{child.port}"
            assert await answers(host, child)
            child.signal(signal.SIGSTOP)
            with pytest.raises(NetworkError):
                await host.dial(child.peer, child.addresses)
            child.signal(signal.SIGKILL)
        async with start_child(address, key=key) as child:
            assert await answers(host, child)


async def test_disconnecting_is_noticed_on_the_other_side():
    ended = trio.Event()

    async def wait_for_the_end(stream) -> None:
        try:
            await stream.read()
        except NetworkError:
            ended.set()

    async with (
        node(listen=["/ip4/127.0.0.1/tcp/0"], on_stream=wait_for_the_end, seed=b"1" * 32) as hub,
        node() as host,
    ):
        stream = await host.dial(hub.peer_id, hub.addresses())
        await eventually(lambda: bool(hub.connected_peers()), 5)
        await host.disconnect(hub.peer_id)
        with pytest.raises(NetworkError):
            await stream.write(b"x")
        with trio.fail_after(2):
            await ended.wait()


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


async def test_a_port_in_use_is_refused_at_the_start():
    """libp2p would share the port with the other node, and each get half of the connections."""
    async with start_child() as child:
        with pytest.raises(ConfigError, match="choose another address with --listen"):
            async with node(listen=[f"/ip4/127.0.0.1/tcp/{child.port}"]):
                pass


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/udp/0/quic-v1", "/dns4/a/tcp/1"])
async def test_an_address_that_cannot_be_listened_on_is_a_configuration_error(address):
    with pytest.raises(ConfigError, match=f"{address}.*--listen"):
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
