"""Circuits: links through a relay, end to end, for members only, within quotas."""

import contextlib
from functools import partial

import pytest
import trio

from aimo_node.domain.ids import Role
from aimo_node.errors import NetworkError, PermissionDenied
from aimo_node.mesh.circuits import client, hops, quotas
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.fixes import circuit_messages
from aimo_node.mesh.fixes.circuit_messages import HOP_PROTOCOL, STOP_PROTOCOL
from aimo_node.mesh.fixes.library import (
    ID,
    HopMessage,
    MuxedStreamError,
    encode_varint_prefixed,
)
from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES
from tests.integration.circuit_parties import LOOPBACK, parties, triangle, until


async def test_a_provider_that_listens_nowhere_is_reached_through_its_relay():
    async with triangle() as (relay, provider, edge):
        (address,) = provider.addresses()
        assert address == f"{relay.host.addresses()[0]}/p2p-circuit/p2p/{provider.peer}"
        parts = await edge.ask(provider.peer, 300)
        assert len(parts) == 301
        assert [int(part[:6]) for part in parts[:-1]] == list(range(300))
        assert edge.network.link(provider.peer).path == "circuit"
        assert provider.network.link(edge.peer).path == "circuit"
        assert edge.network.link(relay.peer).path == "direct"
        assert relay.relay.bytes_carried > 300_000


async def test_requests_go_both_ways_over_one_circuit():
    async with triangle() as (relay, provider, edge):
        await edge.network.connect(provider.peer)
        await until(lambda: provider.network.link(edge.peer) is not None)
        async with trio.open_nursery() as nursery:
            for number in range(1, 5):
                nursery.start_soon(edge.ask, provider.peer, 200, number)
                nursery.start_soon(provider.ask, edge.peer, 200, 100 + number)
        assert relay.relay.book.running == 1


async def test_an_address_of_its_own_is_preferred_to_a_circuit():
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, listen=LOOPBACK, relays=[relay])
        edge = await start("edge", Role.EDGE, relays=[relay])
        await provider.join(relay)
        await provider.reserved(relay)
        await edge.join(relay)
        assert "/p2p-circuit/" in provider.addresses()[-1]
        edge.network.remember(provider.peer, provider.addresses())
        assert (await edge.network.connect(provider.peer)).path == "direct"
        assert relay.relay.book.running == 0


async def test_a_direct_address_that_is_slower_than_a_circuit_is_preferred_too():
    """A circuit costs the relay twice what it carries: the direct way gets its head start."""
    async with parties() as start, trio.open_nursery() as nursery:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, listen=LOOPBACK, relays=[relay])
        edge = await start("edge", Role.EDGE, relays=[relay])
        await provider.join(relay)
        await provider.reserved(relay)
        await edge.join(relay)
        port = int(provider.host.addresses()[0].split("/")[4])
        serve = partial(trio.serve_tcp, host="127.0.0.1")
        (listener,) = await nursery.start(serve, partial(pass_on_late, port), 0)
        late = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{provider.peer}"
        edge.network.remember(provider.peer, [late, provider.addresses()[-1]])
        assert (await edge.network.connect(provider.peer)).path == "direct"
        assert relay.relay.bytes_carried == 0
        nursery.cancel_scope.cancel()


async def pass_on_late(port: int, near: trio.SocketStream) -> None:
    """A way that takes 200 ms longer to begin with; far less than its head start."""
    await trio.sleep(0.2)
    far = await trio.open_tcp_stream("127.0.0.1", port)

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in source:
                await sink.send_all(data)

    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(pump, near, far)
        nursery.start_soon(pump, far, near)


async def test_a_direct_address_that_never_answers_does_not_hold_up_the_circuit():
    silent = trio.socket.socket()
    await silent.bind(("127.0.0.1", 0))
    silent.listen()
    port = silent.getsockname()[1]
    async with triangle() as (_, provider, edge):
        dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{provider.peer}"
        edge.network.remember(provider.peer, [dead, *provider.addresses()])
        with trio.fail_after(4):
            assert (await edge.network.connect(provider.peer)).path == "circuit"
    silent.close()


async def test_an_edge_that_did_not_join_the_relay_links_to_it_first():
    async with triangle() as (relay, provider, _), parties() as start:
        other = await start("other", Role.EDGE)
        other.network.remember(provider.peer, provider.addresses())
        assert (await other.network.connect(provider.peer)).path == "circuit"
        assert other.network.link(relay.peer) is not None


class Tap:
    """A stream at the relay whose bytes are noted as they go by."""

    def __init__(self, stream, seen: bytearray) -> None:
        self._stream = stream
        self._seen = seen

    async def read(self, count: int) -> bytes:
        data = await self._stream.read(count)
        self._seen += data
        return data

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


class TappedRelay(CircuitRelay):
    """Notes everything that it carries, as it could."""

    seen = bytearray()

    async def _move(self, source, sink, circuit) -> None:
        await super()._move(Tap(source, self.seen), sink, circuit)


async def test_a_relay_sees_ciphertext_only():
    """Noise runs between the two ends: neither prompt nor answer can be found at the relay."""
    TappedRelay.seen.clear()
    async with triangle(relay_class=TappedRelay) as (_, provider, edge):
        parts = await edge.ask(provider.peer, 50)
        assert "x" * 900 in parts[0]
    assert len(TappedRelay.seen) > 50_000, "the tap sees what goes by"
    assert b"x" * 8 not in TappedRelay.seen
    assert b"/aimo/link/1" not in TappedRelay.seen
    assert b"/noise" in TappedRelay.seen, "the handshake's first words are plain text"


async def test_the_far_end_has_to_be_who_was_dialled():
    """A relay that connects somebody else is found out by Noise."""
    async with triangle() as (relay, provider, edge):
        other = edge.peer

        async def connect_to_provider(stream):
            await circuit_messages_original(stream)
            return provider.peer

        circuit_messages_original = hops.read_wish
        relay.relay.book.reserve(other, trio.current_time())
        async with parties() as start:
            victim = await start("victim", Role.PROVIDER, relays=[relay])
            await victim.join(relay)
            await victim.reserved(relay)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(hops, "read_wish", connect_to_provider)
                with pytest.raises(NetworkError, match=r"mismatch|another|failed"):
                    await edge.circuits.dial(victim.peer, relay.peer, [])


async def test_who_is_not_admitted_can_neither_reserve_nor_hop():
    """A connection proves a peer id, not membership."""
    async with triangle() as (relay, provider, _), parties() as start:
        stranger = await start("stranger", secret=b"w" * 32)
        with pytest.raises(PermissionDenied):
            await stranger.join(relay)
        held = await stranger.host.dial(relay.peer, relay.host.addresses())
        stream = await stranger.host.open_stream(relay.peer, HOP_PROTOCOL)
        with pytest.raises(NetworkError, match="permission denied"):
            await circuit_messages.ask_for_reservation(stream.muxed_stream)
        stream = await stranger.host.open_stream(relay.peer, HOP_PROTOCOL)
        with pytest.raises(NetworkError, match="permission denied"):
            await circuit_messages.ask_for_circuit(stream.muxed_stream, provider.peer)
        assert not relay.relay.book.has_reservation(stranger.peer, trio.current_time())
        await held.reset()


async def test_a_reservation_is_for_who_asks_whomever_it_names():
    """libp2p's relay reserves for the peer in the message, whoever sent it."""
    async with triangle() as (relay, _, edge), parties() as start:
        victim = await start("victim", Role.PROVIDER)
        await victim.join(relay)
        stream = (await edge.host.open_stream(relay.peer, HOP_PROTOCOL)).muxed_stream
        message = HopMessage(
            type=HopMessage.RESERVE, peer={"id": ID.from_base58(victim.peer).to_bytes()}
        )
        await stream.write(encode_varint_prefixed(message.SerializeToString()))
        assert await stream.read(1)
        assert not relay.relay.book.has_reservation(victim.peer, trio.current_time())
        assert relay.relay.book.has_reservation(edge.peer, trio.current_time())


async def test_nobody_hops_over_a_circuit():
    """Two relays in a row would carry what no quota of the second is counted for."""
    async with triangle() as (_, provider, edge):
        provider.relay.start()
        await edge.network.connect(provider.peer)
        (connection,) = edge.host._live_connections(ID.from_base58(provider.peer))
        stream = await edge.host._negotiate(connection, HOP_PROTOCOL)
        with pytest.raises(NetworkError, match="permission denied"):
            await circuit_messages.ask_for_reservation(stream.muxed_stream)


async def test_a_peer_without_a_reservation_cannot_be_hopped_to():
    async with triangle() as (relay, _, edge), parties() as start:
        shy = await start("shy", Role.PROVIDER)
        await shy.join(relay)
        address = f"{relay.host.addresses()[0]}/p2p-circuit/p2p/{shy.peer}"
        edge.network.remember(shy.peer, [address])
        with pytest.raises(NetworkError, match="no reservation"):
            await edge.network.connect(shy.peer)


async def test_offers_are_taken_from_relays_with_a_reservation_only():
    async with triangle() as (relay, provider, edge):
        await edge.network.connect(provider.peer)
        await edge.join(relay)
        stream = await relay.host.open_stream(edge.peer, STOP_PROTOCOL)
        with trio.fail_after(5):
            if relay.peer in edge.circuits.relays:
                edge.circuits._held.clear()
            with pytest.raises(NetworkError, match="permission denied"):
                await circuit_messages.offer_circuit(stream.muxed_stream, provider.peer)


@pytest.mark.parametrize("protocol", [HOP_PROTOCOL, STOP_PROTOCOL])
@pytest.mark.parametrize("data", [b"\x00", b"\xff" * 11, b"\x7f" + b"\xee" * 127, b"\x80\x80\x04"])
async def test_nonsense_ends_its_own_stream_only(protocol, data):
    async with triangle() as (relay, provider, edge):
        asked, asker = (relay, edge) if protocol == HOP_PROTOCOL else (provider, relay)
        stream = (await asker.host.open_stream(asked.peer, protocol)).muxed_stream
        await stream.write(data)
        with trio.fail_after(8), contextlib.suppress(MuxedStreamError):
            while await stream.read(100):
                pass
        assert len(await edge.ask(provider.peer, 2)) == 3


async def test_circuits_of_one_member_are_limited():
    async with triangle(limits=CircuitLimits(circuits_per_member_max=1)) as parts:
        relay, provider, edge = parts
        await edge.network.connect(provider.peer)
        async with parties() as start:
            late = await start("late", Role.EDGE)
            await late.join(relay)
            late.network.remember(provider.peer, provider.addresses())
            with pytest.raises(NetworkError, match="resource limit exceeded"):
                await late.network.connect(provider.peer)
            await edge.host.disconnect(provider.peer)
            await until(lambda: relay.relay.book.running == 0)
            assert (await late.network.connect(provider.peer)).path == "circuit"


async def test_crossing_a_limit_in_mid_stream_ends_the_request_once_and_clearly():
    async with triangle(limits=CircuitLimits(circuit_bytes_max=300_000)) as (relay, provider, edge):
        with pytest.raises(NetworkError, match="the link to the provider was lost"):
            await edge.ask(provider.peer, 1000)
        await until(lambda: relay.relay.book.running == 0)
        await until(lambda: edge.network.link(provider.peer) is None)
        assert len(await edge.ask(provider.peer, 10)) == 11
        assert edge.network.link(provider.peer).path == "circuit"


async def test_a_slow_rate_loses_nothing():
    limits = CircuitLimits(member_bytes_per_second=200_000)
    async with triangle(limits=limits) as (_, provider, edge):
        parts = await edge.ask(provider.peer, 300)
        assert [int(part[:6]) for part in parts[:-1]] == list(range(300))


async def test_readers_that_stall_hold_up_nobody_else():
    """All their circuits come over one connection of the provider, which lives and goes on."""
    async with (
        triangle() as (relay, provider, edge),
        parties() as start,
        trio.open_nursery() as nursery,
    ):
        for number in range(5):
            member = await start(f"stalled{number}", Role.EDGE)
            await member.join(relay)
            member.network.remember(provider.peer, provider.addresses())
            await member.network.connect(provider.peer)
            stop_reading(member)
            for question in range(40):
                nursery.start_soon(member.ask, provider.peer, 20, question)
        await until(lambda: relay.relay.bytes_carried > 5 * RECEIVE_WINDOW_BYTES)
        with trio.fail_after(10):
            assert len(await edge.ask(provider.peer, 500, 1000)) == 501
        assert provider.network.link(relay.peer) is not None
        nursery.cancel_scope.cancel()


def stop_reading(member) -> None:
    """From now on, what arrives over its sockets stays there."""
    for connection in member.host._swarm.get_connections():
        if connection.muxed_conn.path == "direct":
            connection.muxed_conn._wire.receive = trio.sleep_forever


async def test_a_reservation_moves_when_its_relay_dies():
    async with parties() as start:
        first = await start("relay", Role.RELAY, listen=LOOPBACK)
        second = await start("relay2", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, relays=[first, second])
        edge = await start("edge", Role.EDGE)
        await provider.join(first, second)
        await edge.join(first, second)
        await provider.reserved(first)
        edge.network.remember(provider.peer, provider.addresses())
        link = await edge.network.connect(provider.peer)
        first.end()
        with trio.fail_after(5):
            await link.closed.wait()
        assert link.is_lost
        await provider.reserved(second)
        assert provider.circuits.relays == (second.peer,)
        assert provider.changes >= 2
        (address,) = provider.addresses()
        assert second.peer in address
        edge.network.remember(provider.peer, provider.addresses())
        assert (await edge.network.connect(provider.peer)).path == "circuit"


async def test_reservations_are_renewed(monkeypatch):
    monkeypatch.setattr(quotas, "RESERVATION_SECONDS", 1.0)
    monkeypatch.setattr(client, "RENEW_SECONDS_MIN", 0.05)
    monkeypatch.setattr(client, "RENEW_SECONDS_MAX", 0.1)
    async with triangle() as (relay, provider, _):
        expiries = set()

        def note_expiry() -> bool:
            expiries.add(relay.relay.book._expiries.get(provider.peer))
            return len(expiries) >= 3

        await until(note_expiry)
        assert None not in expiries
        assert provider.changes == 1, "the same address is not announced again"


async def test_two_relays_give_two_ways():
    async with parties() as start:
        relays = [await start(f"relay{number}", Role.RELAY, listen=LOOPBACK) for number in range(3)]
        provider = await start("provider", Role.PROVIDER, relays=relays, reservations_max=2)
        await provider.join(*relays)
        await until(lambda: len(provider.circuits.relays) == 2)
        lost = provider.circuits.relays[0]
        next(relay for relay in relays if relay.peer == lost).end()
        await until(
            lambda: len(provider.circuits.relays) == 2 and lost not in provider.circuits.relays
        )


async def test_a_relay_nobody_joined_is_not_asked():
    """Who only says that it is a relay does not become the way to this node."""
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        pretender = await start("pretender", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, relays=[relay], reservations_max=2)
        await provider.join(pretender, relay)
        await provider.reserved(relay)
        assert provider.circuits.relays == (relay.peer,)


async def test_circuits_end_with_the_link_even_if_the_connection_lives_on():
    """As it does while the same peer is being dialled, or says Hello again in vain."""
    async with triangle() as (relay, provider, edge):
        link = await edge.network.connect(provider.peer)
        relay.network.dials, provider.network.dials = {provider.peer}, {relay.peer}
        relay.network.link(provider.peer).close()
        with trio.fail_after(5):
            await link.closed.wait()
        await until(lambda: relay.relay.book.running == 0)


async def test_a_member_that_leaves_has_no_circuits_and_no_reservation():
    async with triangle() as (relay, provider, edge):
        link = await edge.network.connect(provider.peer)
        relay.network.link(provider.peer).close()
        with trio.fail_after(5):
            await link.closed.wait()
        await until(lambda: relay.relay.book.running == 0)
        assert not relay.relay.book.has_reservation(provider.peer, trio.current_time())
