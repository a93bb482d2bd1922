"""How circuits begin and end: nothing is forgotten, and nothing ends before what runs on it."""

import pytest
import trio

from aimo_node.domain.ids import Role
from aimo_node.errors import NetworkError
from aimo_node.mesh import link
from aimo_node.mesh.circuits import client
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.fixes import circuit_messages
from aimo_node.mesh.fixes.circuit_messages import Reservation
from aimo_node.mesh.fixes.library import ID, Multiaddr
from tests.integration.circuit_parties import LOOPBACK, parties, triangle, until


@pytest.mark.parametrize("who", ["provider", "edge"])
async def test_a_node_that_drains_finishes_the_answers_on_its_circuits(who, monkeypatch):
    """Its link to the relay is idle, and would end at once; the circuits would end with it."""
    monkeypatch.setattr(link.limits, "PING_SECONDS", 0.1)
    limits = CircuitLimits(member_bytes_per_second=400_000)
    async with triangle(limits=limits) as (relay, provider, edge), trio.open_nursery() as nursery:
        answers = []

        async def ask() -> None:
            answers.append(await edge.ask(provider.peer, 800))

        nursery.start_soon(ask)
        await until(lambda: relay.relay.bytes_carried > 50_000)
        leaving = provider if who == "provider" else edge
        leaving.network.drain()
        await until(lambda: answers != [])
        assert len(answers[0]) == 801
        await until(lambda: not list(leaving.network.links()))


async def test_a_relay_that_comes_while_another_is_asked_is_asked_too(monkeypatch):
    """Else it would be when the first reservation is renewed, minutes later."""
    slow = trio.Event()

    async def ask_slowly(stream) -> Reservation:
        if not slow.is_set():
            await slow.wait()
        return await circuit_messages.ask_for_reservation(stream)

    monkeypatch.setattr(client, "ask_for_reservation", ask_slowly)
    async with parties() as start:
        relays = [await start(f"relay{number}", Role.RELAY, listen=LOOPBACK) for number in range(2)]
        provider = await start("provider", Role.PROVIDER, relays=relays, reservations_max=2)
        await provider.join(relays[0])
        await until(lambda: slow.statistics().tasks_waiting == 1)
        await provider.join(relays[1])
        slow.set()
        await until(lambda: len(provider.circuits.relays) == 2)


async def test_a_node_does_not_ask_a_relay_more_often_than_the_relay_bears(monkeypatch):
    """A peer that cannot be reached is dialled for every request; the relay would hang up on the
    node, and all circuits that work would end."""
    monkeypatch.setattr(client, "ASKED_AT_ONCE", 3)
    async with triangle() as (relay, _, edge), parties() as start:
        shy = await start("shy", Role.PROVIDER)
        await shy.join(relay)
        for _ in range(3):
            with pytest.raises(NetworkError, match="no reservation"):
                await edge.circuits.dial(shy.peer, relay.peer, [])
        with pytest.raises(NetworkError, match="asked too often"):
            await edge.circuits.dial(shy.peer, relay.peer, [])


async def test_circuits_run_over_the_connection_that_carries_the_link():
    """Another is closed as soon as it is noticed, and would take the circuit along."""
    async with triangle() as (relay, provider, edge):
        for party in (provider, edge):
            peer_id = ID.from_base58(relay.peer)
            address = Multiaddr(relay.host.addresses()[0].partition("/p2p/")[0])
            spare = await party.host._swarm.dial_addr(address, peer_id)
            known = party.host._swarm.connections[peer_id]
            known.remove(spare)
            known.insert(0, spare)
        await until(lambda: len(relay.host._swarm.get_connections()) == 4)
        for known in relay.host._swarm.connections.values():
            known.reverse()
        link = await edge.network.connect(provider.peer)
        for party in (provider, edge):
            spare, linked = party.host._swarm.connections[ID.from_base58(relay.peer)]
            await spare.close()
            assert not linked.is_closed
        assert len(await edge.ask(provider.peer, 5)) == 6
        assert edge.network.link(provider.peer) is link


async def test_a_node_that_shuts_down_does_not_cut_off_the_end_of_an_answer():
    """What waits at the relay for its turn is lost when the link to the relay ends."""
    limits = CircuitLimits(member_bytes_per_second=400_000)
    async with triangle(limits=limits) as (relay, provider, edge), trio.open_nursery() as nursery:
        answers = []

        async def ask() -> None:
            answers.append(await edge.ask(provider.peer, 800))

        nursery.start_soon(ask)
        await until(lambda: relay.relay.bytes_carried > 50_000)
        provider.network.drain()
        await provider.network.wait_idle()
        await provider.network.close()
        provider.end()
        await until(lambda: answers != [])
        assert len(answers[0]) == 801
