"""From a circuit to a direct link while requests run, on loopback.

Two sockets of one machine cannot open one connection at the same moment: the first packet is there
before the other end has begun. So `meet_half_way` stands in for the two routers here; real packets
meet in `tests/netlab`.
"""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, RequestId, Role
from aimo_node.errors import NetworkError
from aimo_node.mesh import network, rivals
from aimo_node.mesh.circuits import upgrades
from aimo_node.mesh.fixes.hole_punch_messages import (
    HOLE_PUNCH_PROTOCOL,
    await_signal,
    give_signal,
    hear_addresses,
    tell_addresses,
)
from aimo_node.mesh.fixes.library import RawConnection
from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream
from aimo_node.mesh.fixes.tcp_addresses import tcp_endpoint
from aimo_node.mesh.fixes.tcp_listening import TcpTransport
from aimo_node.mesh.host import CIRCUIT
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import OutgoingRequest
from tests.integration.circuit_parties import LOOPBACK, Party, parties, until

HANDOVER_SECONDS = 0.3


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    """What a slow network needs, a test does not."""
    monkeypatch.setattr(rivals, "HANDOVER_SECONDS", HANDOVER_SECONDS)
    monkeypatch.setattr(upgrades, "MEETING_SECONDS", 0.5)


@asynccontextmanager
async def apart(
    *, edge_listens: bool, edge_upgrades: bool = True
) -> AsyncIterator[tuple[Party, Party, Party]]:
    """A relay, a provider that listens nowhere, an edge whose address the provider is not told."""
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, relays=[relay], upgrades=True)
        edge = await start(
            "edge",
            Role.EDGE,
            relays=[relay],
            listen=LOOPBACK if edge_listens else (),
            upgrades=edge_upgrades,
        )
        await provider.join(relay)
        await provider.reserved(relay)
        await edge.join(relay)
        edge.network.remember(provider.peer, provider.addresses())
        yield relay, provider, edge


def paths(one: Party, other: Party) -> tuple[str, str]:
    """How the two see their link."""
    links = one.network.link(other.peer), other.network.link(one.peer)
    return tuple(link.path if link is not None else "" for link in links)


async def became_direct(one: Party, other: Party) -> None:
    """Wait until both ends say so."""
    await until(lambda: paths(one, other) == ("direct", "direct"))


async def gave_up(one: Party, other: Party) -> None:
    """Wait until `one` says that it found no direct way."""

    def says_so() -> bool:
        link = one.network.link(other.peer)
        return link is not None and "failed 3 times" in link.reason

    await until(says_so)


def numbers(parts: list) -> list[int]:
    """The numbers of the pieces of an answer."""
    return [int(part[:6]) for part in parts if isinstance(part, str)]


async def test_the_edge_is_dialled_and_the_request_that_ran_goes_on_without_a_gap():
    async with apart(edge_listens=True) as (relay, provider, edge):
        request = OutgoingRequest(
            RequestId(bytes(16)), Endpoint.CHAT, b"2000", stream=True, deadline_ms=60_000
        )
        exchange = await edge.network.open_exchange(provider.peer, request)
        old = edge.network.link(provider.peer)
        parts = await exchange.receive()
        await became_direct(edge, provider)
        assert exchange.path == CIRCUIT
        assert len(await edge.ask(provider.peer, 50)) == 51, "new requests take the new link"
        carried = relay.relay.bytes_carried
        assert len(await edge.ask(provider.peer, 500, 2)) == 501
        assert relay.relay.bytes_carried - carried < 100_000
        while not isinstance(parts[-1], Finish):
            parts += await exchange.receive()
        assert numbers(parts) == list(range(2000))
        with trio.fail_after(5):
            await old.ended.wait()
        await until(lambda: relay.relay.book.running == 0)
        assert edge.network.link(provider.peer).reason == "dialled us"
        assert provider.network.link(edge.peer).reason == "dialled"
        assert not edge.host.connections(provider.peer, CIRCUIT)


async def test_a_request_that_the_peer_still_sends_over_the_circuit_is_served():
    """It sends them there until it has heard that the direct link is open, too."""
    async with apart(edge_listens=True) as (_, provider, edge):
        old = await edge.network.connect(provider.peer)
        await became_direct(edge, provider)
        assert edge.network.link(provider.peer) is not old
        request = OutgoingRequest(
            RequestId(bytes(16)), Endpoint.CHAT, b"100", stream=True, deadline_ms=60_000
        )
        exchange = old.open_exchange(request)
        parts: list = []
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await exchange.receive()
        assert numbers(parts) == list(range(100))


@pytest.fixture
def meet_half_way(monkeypatch):
    """Connections that both ends open find each other, if each goes where the other comes from."""
    waiting: dict[tuple[int, int], trio.socket.SocketType] = {}

    async def dial_with_source(self, maddr, source):
        target = tcp_endpoint(maddr)
        ends = tuple(sorted((source[1], target[1])))
        if ends in waiting:
            host, port = waiting.pop(ends).getsockname()
            stream = await trio.open_tcp_stream(host, port)
        else:
            plain = socket.create_server(("127.0.0.1", 0))
            with trio.socket.from_stdlib_socket(plain) as listening:
                waiting[ends] = listening
                try:
                    stream = trio.SocketStream((await listening.accept())[0])
                finally:
                    waiting.pop(ends, None)
        return RawConnection(BufferedTcpStream(stream), True)

    monkeypatch.setattr(TcpTransport, "dial_with_source", dial_with_source)
    monkeypatch.setattr(upgrades, "MEETING_SECONDS", 4.0)


class FirstReasons(IdleObserver):
    """Notes what is said of each link at the moment when it opens."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def link_opened(self, link) -> None:
        self.reasons.append(link.reason)


@pytest.mark.usefixtures("meet_half_way")
async def test_two_that_listen_nowhere_meet_where_the_relay_sees_them():
    async with apart(edge_listens=False) as (relay, provider, edge):
        opened = FirstReasons()
        provider.network.add_observer(opened)
        assert len(await edge.ask(provider.peer, 10)) == 11
        await became_direct(edge, provider)
        assert opened.reasons[-1] == "hole punched", "who asks at once hears the same"
        near, far = edge.network.link(provider.peer), provider.network.link(edge.peer)
        assert (near.reason, far.reason) == ("hole punched", "hole punched")
        assert near.stream.initiator
        assert len(await edge.ask(provider.peer, 300, 2)) == 301
        await until(lambda: relay.relay.book.running == 0)


async def test_without_a_direct_way_the_circuit_stays_and_says_why():
    async with apart(edge_listens=False) as (relay, provider, edge):
        assert len(await edge.ask(provider.peer, 10)) == 11
        for one, other in ((edge, provider), (provider, edge)):
            await gave_up(one, other)
            reason = one.network.link(other.peer).reason
            assert reason.startswith(f"circuit through {relay.peer}: hole punching failed 3 times")
        assert len(await edge.ask(provider.peer, 300, 2)) == 301
        assert paths(edge, provider) == ("circuit", "circuit")


async def test_other_networks_are_a_new_chance(monkeypatch):
    """As when the machine has moved to where it can be reached."""
    async with apart(edge_listens=True) as (_, provider, edge):
        real = provider.upgrades._visit
        monkeypatch.setattr(provider.upgrades, "_visit", no_visit)
        await edge.network.connect(provider.peer)
        await gave_up(provider, edge)
        monkeypatch.setattr(provider.upgrades, "_visit", real)
        provider.upgrades.retry_now()
        await became_direct(edge, provider)


async def no_visit(meeting, targets) -> None:
    """Nobody is dialled."""


async def test_the_end_that_made_the_circuit_can_begin_when_its_networks_change(monkeypatch):
    async with apart(edge_listens=False) as (_, provider, edge):
        await edge.network.connect(provider.peer)
        await gave_up(edge, provider)
        await gave_up(provider, edge)
        begun = []
        monkeypatch.setattr(provider.upgrades, "_answer", record(begun))
        edge.upgrades.retry_now()
        await until(lambda: begun == [edge.peer])


def record(seen: list):
    """Notes with whom a round was begun, and does nothing."""

    async def answer(peer, stream) -> None:
        seen.append(peer)

    return answer


async def test_a_peer_that_goes_back_and_forth_costs_itself_a_link():
    """Direct, circuit, direct: it is served over the last, and no more links than usual live."""
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, listen=LOOPBACK, relays=[relay])
        edge = await start("edge", Role.EDGE, relays=[relay])
        await provider.join(relay)
        await provider.reserved(relay)
        await edge.join(relay)
        direct, *_, circuit = provider.addresses()
        for number, address in enumerate([circuit, direct] * 6):
            edge.network._links.pop(provider.peer, None)  # it says nothing of the one it had
            edge.network.remember(provider.peer, [address])
            assert len(await edge.ask(provider.peer, 5, number)) == 6
            living = [link for link in provider.network._living if link.peer == edge.peer]
            assert len(living) <= network.LINKS_PER_PEER_MAX


async def test_who_is_on_a_direct_link_begins_no_round():
    async with apart(edge_listens=True, edge_upgrades=True) as (_, provider, edge):
        await edge.network.connect(provider.peer)
        await became_direct(edge, provider)
        with pytest.raises(NetworkError):
            await begin(edge, provider, "direct")


async def begin(one: Party, other: Party, path: str = CIRCUIT):
    """A stream on which the other has said where it may be met."""
    stream = (await one.host.open_stream(other.peer, HOLE_PUNCH_PROTOCOL, path)).muxed_stream
    await tell_addresses(stream, [])
    await hear_addresses(stream)
    await give_signal(stream)
    return stream


async def test_no_more_is_tried_than_a_round_may_and_never_this_machine(monkeypatch):
    """A member that wants to know what is open in somebody else's network."""
    async with apart(edge_listens=False, edge_upgrades=False) as (_, provider, edge):
        tried: list[str] = []

        async def connect(peer, targets, foothold):
            tried.extend(targets)
            raise NetworkError("refused")

        async def on_a_real_network(relay):
            return upgrades.Foothold(("10.1.0.2", 40_000), "/ip4/203.0.113.1/tcp/40000")

        monkeypatch.setattr(provider.upgrades, "_visit", no_visit)
        await edge.network.connect(provider.peer)
        ways = provider.upgrades._ways
        monkeypatch.setattr(ways, "meet", connect)
        monkeypatch.setattr(ways, "foothold", on_a_real_network)
        rounds = 0
        for number in range(6):
            ports = range(2000 + 100 * number, 2020 + 100 * number)
            told = [f"/ip4/10.1.0.9/tcp/{port}" for port in ports]
            try:
                stream = await begin(edge, provider)
                for half in (told[:10], told[10:]):
                    await tell_addresses(stream, [*half, "/ip4/127.0.0.1/tcp/5000"])
                    assert await hear_addresses(stream) == ("/ip4/203.0.113.1/tcp/40000",)
                    await give_signal(stream)
            except NetworkError:
                continue
            rounds += 1
            await until(lambda rounds=rounds: len(tried) >= 8 * rounds)
        assert 1 <= rounds <= 3
        assert len(set(tried)) == 8 * rounds
        assert not any("127.0.0.1" in target for target in tried)


async def test_a_peer_that_holds_up_its_round_gets_no_second_one_meanwhile():
    async with apart(edge_listens=False, edge_upgrades=False) as (_, provider, edge):
        await edge.network.connect(provider.peer)
        await until(lambda: provider.network.link(edge.peer) is not None)
        await gave_up_asking(provider, edge)
        held = await begin(edge, provider)
        with pytest.raises(NetworkError):
            await begin(edge, provider)
        await tell_addresses(held, [])
        await hear_addresses(held)


async def gave_up_asking(one: Party, other: Party) -> None:
    """Wait until `one` knows that `other` speaks no DCUtR: then it begins no round for a while."""
    await until(lambda: "cannot open a stream" in one.network.link(other.peer).reason)


async def test_what_is_no_message_ends_the_round_and_nothing_else():
    async with apart(edge_listens=False, edge_upgrades=False) as (_, provider, edge):
        await edge.network.connect(provider.peer)
        stream = (
            await edge.host.open_stream(provider.peer, HOLE_PUNCH_PROTOCOL, CIRCUIT)
        ).muxed_stream
        await give_signal(stream)
        with pytest.raises(NetworkError):
            await await_signal(stream)
        assert len(await edge.ask(provider.peer, 20)) == 21
