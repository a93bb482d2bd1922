"""What libp2p would do on its own: ask every peer, dial whom it has heard of, take any key or tale.

Each test fails if the part of `mesh/fixes` that it names is taken out.
"""

from dataclasses import replace

import pytest
import trio

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.identify_library import IDENTIFY_PROTOCOL
from aimo_node.mesh.fixes.library import ID, IDENTIFY_PUSH_PROTOCOL, KeyType, Multiaddr
from aimo_node.mesh.fixes.library import key_type_to_public_key_deserializer as deserializers
from tests.integration.libp2p_parties import node, read_exactly

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ROUND_TRIPS = 50
"""Whoever is asked something at all is asked it when the connection is made."""


async def echo(stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def test_a_peer_is_not_interrogated():
    """`background_work`: libp2p asks every peer who it is, in tasks that outlive the host."""
    asked = []

    async def note(net_stream) -> None:
        asked.append(net_stream.muxed_conn.peer_id)
        await net_stream.reset()

    async with (
        node(listen=LOOPBACK, seed=b"a" * 32, on_stream=echo) as there,
        node(listen=LOOPBACK, seed=b"b" * 32, on_stream=echo) as here,
    ):
        for host in (there, here):
            host.serve_raw(str(IDENTIFY_PROTOCOL), note)
        stream = await here.dial(there.peer_id, there.addresses())
        for _ in range(ROUND_TRIPS):
            await stream.write(b"x")
            assert await read_exactly(stream, 1) == b"x"
        assert asked == []


async def test_a_stranger_cannot_tell_us_addresses():
    """`background_work`: libp2p believes what is pushed, and writes it into its book."""
    async with node(listen=LOOPBACK, seed=b"a" * 32) as there, node() as here:
        with pytest.raises(NetworkError):
            await here.dial(there.peer_id, there.addresses(), protocol=str(IDENTIFY_PUSH_PROTOCOL))


async def test_nobody_is_dialled_for_the_sake_of_a_number():
    """`background_work`: libp2p's auto-connector dials whoever is in its book."""
    async with node(listen=LOOPBACK, seed=b"a" * 32) as known, node() as here:
        swarm = here.libp2p_host.get_network()
        place = Multiaddr(known.addresses()[0].partition("/p2p/")[0])
        swarm.peerstore.add_addrs(ID.from_base58(known.peer_id), [place], 60)
        swarm.connection_config = replace(
            swarm.connection_config, min_connections=1, low_watermark=1
        )
        with trio.fail_after(10):
            await swarm.auto_connector.start()
            await swarm.auto_connector.maybe_connect()
        assert here.connected_peers() == []
        assert known.connected_peers() == []


async def test_peers_with_other_keys_than_ours_are_refused():
    """`muxer_choice`: their ids do not carry the key, so nothing they sign could be checked."""
    async with node():
        assert list(deserializers) == [KeyType.Ed25519.value]
