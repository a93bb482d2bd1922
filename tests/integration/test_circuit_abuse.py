"""What hostile members, strangers and relays can do with circuits, and what they cannot."""

import contextlib

import pytest
import structlog
import trio

from aimo_node.domain.ids import Role
from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes import circuit_messages
from aimo_node.mesh.fixes.circuit_messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    Status,
    answer_offer,
    read_offer,
)
from aimo_node.mesh.fixes.library import ID, MuxedStreamError
from aimo_node.mesh.host import HostLimits
from aimo_node.mesh.identity import KeyPair
from aimo_node.protocol.limits import ADDRESS_CHARS_MAX
from tests.integration.circuit_parties import LOOPBACK, parties, triangle, until

NOISE = b"\x13/multistream/1.0.0\n\x07/noise\n"
HANDSHAKES = {
    "no multistream": b"\x05\xff\xfe\xfd\xfc\n",
    "empty": NOISE + b"\0\0",
    "short": NOISE + b"\0\x0a" + b"x" * 10,
    "unsealed": NOISE + b"\0\xc8" + b"x" * 200,
    "nothing after": NOISE,
}
"""What a hostile end says instead of Noise."""


@pytest.mark.parametrize("words", HANDSHAKES.values(), ids=HANDSHAKES)
async def test_a_far_end_that_speaks_nonsense_is_one_way_that_failed(words):
    """Noise raises whatever its parts raise; the other ways of the same dial go on."""
    async with triangle() as (relay, provider, edge):

        async def speak(net_stream) -> None:
            await read_offer(net_stream.muxed_stream)
            await answer_offer(net_stream.muxed_stream, Status.OK)
            await net_stream.muxed_stream.write(words)
            await net_stream.close()

        provider.host.serve_raw(STOP_PROTOCOL, speak)
        with pytest.raises(NetworkError):
            await edge.circuits.dial(provider.peer, relay.peer, [])


async def test_a_far_end_that_says_nothing_is_given_up(monkeypatch):
    """libp2p sets no time for the first half of its handshakes."""
    async with triangle() as (relay, provider, edge):
        monkeypatch.setattr(edge.host, "_limits", HostLimits(handshake_seconds_max=0.2))

        async def say_nothing(net_stream) -> None:
            await read_offer(net_stream.muxed_stream)
            await answer_offer(net_stream.muxed_stream, Status.OK)
            await trio.sleep_forever()

        provider.host.serve_raw(STOP_PROTOCOL, say_nothing)
        with trio.fail_after(5), pytest.raises(NetworkError):
            await edge.circuits.dial(provider.peer, relay.peer, [])
        await until(lambda: relay.relay.book.running == 0)


@pytest.mark.parametrize("words", HANDSHAKES.values(), ids=HANDSHAKES)
async def test_a_near_end_that_speaks_nonsense_is_not_an_error_of_this_node(words):
    """Each would be a traceback in the log of whoever can be reached."""
    async with triangle() as (relay, provider, edge):
        net_stream = await edge.host.open_stream(relay.peer, HOP_PROTOCOL)
        await circuit_messages.ask_for_circuit(net_stream.muxed_stream, provider.peer)
        with structlog.testing.capture_logs() as events:
            await net_stream.muxed_stream.write(words)
            await net_stream.close()
            await until(lambda: relay.relay.book.running == 0)
            await until(lambda: any(event["event"] == "circuit.refused" for event in events))
        assert not [event for event in events if event["log_level"] in {"warning", "error"}]


async def test_offers_of_strangers_leave_no_trace_in_the_log():
    """Whoever connects can make a hundred of them in a second."""
    async with triangle() as (relay, _, edge):
        net_stream = await edge.host.open_stream(relay.peer, STOP_PROTOCOL)
        with structlog.testing.capture_logs() as events:
            await net_stream.muxed_stream.write(b"\x7f" + b"\xee" * 127)
            await until(lambda: any(event["event"] == "circuit.refused" for event in events))
        levels = {one["log_level"] for one in events if one["event"].startswith("circuit.")}
        assert levels == {"debug"}
        await net_stream.reset()


async def test_nobody_is_offered_over_a_circuit():
    """As nobody hops over one: a relay has to be reached directly."""
    async with triangle() as (_, provider, edge):
        await edge.network.connect(provider.peer)
        (connection,) = edge.host._live_connections(ID.from_base58(provider.peer))
        (held,) = provider.circuits._held.values()
        provider.circuits._held[edge.peer] = held
        stream = await edge.host._negotiate(connection, STOP_PROTOCOL)
        with pytest.raises(NetworkError, match="permission denied"):
            await circuit_messages.offer_circuit(stream.muxed_stream, edge.peer)


async def test_a_peer_that_names_a_wrong_address_of_a_relay_does_not_hide_it():
    """Any member can name any relay in its descriptor."""
    async with triangle() as (relay, provider, _), parties() as start:
        edge = await start("newcomer", Role.EDGE)
        liar = await start("liar", Role.PROVIDER)
        wrong = f"/ip4/127.0.0.1/tcp/1/p2p/{relay.peer}/p2p-circuit/p2p/{liar.peer}"
        edge.network.remember(liar.peer, [wrong])
        with pytest.raises(NetworkError):
            await edge.network.connect(liar.peer)
        edge.network.remember(provider.peer, provider.addresses())
        assert (await edge.network.connect(provider.peer)).path == "circuit"


async def test_a_relay_is_not_dialled_through_another():
    """Members could else name relays in a circle, and one dial would be as many as there may be."""
    async with parties() as start:
        edge = await start("edge", Role.EDGE)
        names = [KeyPair.from_seed(bytes([number] * 32)).peer_id for number in range(3)]
        first, second, target = names
        nowhere = "/ip4/127.0.0.1/tcp/1"
        for relay, peer in [(first, second), (second, first), (first, target)]:
            edge.network.remember(peer, [f"{nowhere}/p2p/{relay}/p2p-circuit/p2p/{peer}"])
        with trio.fail_after(5), pytest.raises(NetworkError, match="refused"):
            await edge.network.connect(target)
        assert not edge.network.dials


async def test_members_that_open_circuits_in_a_flood_cut_nobody_off():
    """Each is a stream from the relay to the peer, which takes a hundred a second from nobody."""
    async with triangle() as (relay, provider, _), parties() as start:
        link = provider.network.link(relay.peer)
        floods = [await start(f"flood{number}", Role.EDGE) for number in range(3)]
        for flood in floods:
            await flood.join(relay)

        async def open_circuits(party) -> None:
            for _ in range(60):
                net_stream = await party.host.open_stream(relay.peer, HOP_PROTOCOL)
                with contextlib.suppress(NetworkError):
                    await circuit_messages.ask_for_circuit(net_stream.muxed_stream, provider.peer)
                await net_stream.reset()

        async with trio.open_nursery() as nursery:
            for flood in floods:
                nursery.start_soon(open_circuits, flood)
        assert provider.network.link(relay.peer) is link
        assert not link.closed.is_set()


async def test_addresses_of_a_relay_that_no_descriptor_can_hold_are_left_out():
    """The provider could else announce nothing at all."""
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        long = f"/dns4/{'.'.join(['a' * 60] * 3)}/tcp/4001/p2p/{relay.peer}"
        relay.relay._addresses = lambda: (long, *relay.host.addresses())
        provider = await start("provider", Role.PROVIDER, relays=[relay])
        await provider.join(relay)
        await provider.reserved(relay)
        (address,) = provider.addresses()
        assert len(address) <= ADDRESS_CHARS_MAX


async def test_a_near_end_that_greets_without_end_is_not_listened_to():
    """Before Noise nobody knows who it is; libp2p would keep whatever comes."""
    async with triangle() as (relay, provider, edge):
        net_stream = await edge.host.open_stream(relay.peer, HOP_PROTOCOL)
        stream = net_stream.muxed_stream
        await circuit_messages.ask_for_circuit(stream, provider.peer)
        with trio.fail_after(8), contextlib.suppress(MuxedStreamError):
            await stream.write(b"\xff\xff\xff\xff\x03")
            while True:
                await stream.write(b"x" * 65_535)
        assert relay.relay.bytes_carried < 1_000_000


async def test_refusals_do_not_fill_the_log_of_a_relay():
    """A member can have a hundred in a second; twenty tell as much."""
    async with triangle() as (relay, _, edge), parties() as start:
        shy = await start("shy", Role.PROVIDER)
        await shy.join(relay)
        with structlog.testing.capture_logs() as events:
            for _ in range(40):
                stream = await edge.host.open_stream(relay.peer, HOP_PROTOCOL)
                with pytest.raises(NetworkError, match="no reservation"):
                    await circuit_messages.ask_for_circuit(stream.muxed_stream, shy.peer)
                await stream.reset()
        levels = [one["log_level"] for one in events if one["event"] == "circuit.refused"]
        assert levels[:20] == ["info"] * 20
        assert levels.count("debug") >= 5
