"""What an edge takes from a directory and from its links, and what it knows better itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import ModelName, PeerId, Role
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status
from aimo_node.mesh.directory.discovery import Discovery
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import frames
from aimo_node.protocol.descriptors import describe, heartbeat_of
from aimo_node.protocol.session import Announcement
from aimo_node.protocol.signing import descriptor_bytes_to_sign
from aimo_node.routing.table import RoutingTable
from aimo_node.testing.memory_network import MemoryMesh

RELAY = PeerId("relay")
OWN, OTHER = (KeyPair.from_seed(bytes(31) + bytes([number])) for number in (1, 2))


def descriptor(pair: KeyPair, name: str, revision: int = 1) -> Descriptor:
    models = (ModelInfo(ModelName(name)),)
    return Descriptor(
        pair.peer_id,
        1,
        models,
        (f"/memory/{pair.peer_id}",),
        engine_state=EngineState.RUNNING,
        revision=revision,
    )


def batch(pair: KeyPair, name: str, health: Health) -> frames.Directory:
    body = describe(descriptor(pair, name, revision=9))
    signed = frames.Descriptor(body, sign(pair, descriptor_bytes_to_sign(body)))
    beat = heartbeat_of(Status(pair.peer_id, 1, 9, health, Load(running=5)))
    return frames.Directory(False, [signed], [beat], [])


def gone(pair: KeyPair) -> frames.Directory:
    return frames.Directory(False, [], [], [pair.peer_id])


@asynccontextmanager
async def edge(own: PeerId | None) -> AsyncIterator[tuple[MeshNetwork, Discovery, RoutingTable]]:
    async with trio.open_nursery() as nursery:
        memory = MemoryMesh(nursery)
        network = await memory.add(OWN.peer_id, Role.EDGE)
        await memory.add(OTHER.peer_id, Role.EDGE)
        table = RoutingTable()
        discovery = Discovery(network, table, relays=frozenset({RELAY}), own=own)
        network.add_observer(discovery)
        yield network, discovery, table
        nursery.cancel_scope.cancel()


async def test_a_node_that_speaks_for_itself_lets_no_relay_speak_of_it() -> None:
    async with edge(OWN.peer_id) as (_, discovery, table):
        own = descriptor(OWN, "private")
        table.describe(OWN.peer_id, own, 0.0)
        table.report(OWN.peer_id, Status(OWN.peer_id, 1, 1, Health.HEALTHY, Load()), 0.0)
        discovery.learn(RELAY, batch(OWN, "public", Health.OFFLINE))
        discovery.learn(RELAY, gone(OWN))
        (entry,) = table
        assert entry.descriptor == own
        assert (entry.health, entry.load.running) == (Health.HEALTHY, 0)
        assert set(entry.heard) == {OWN.peer_id}
        discovery.learn(RELAY, batch(OTHER, "tiny", Health.HEALTHY))
        assert len(table) == 2


async def test_a_node_that_says_nothing_of_itself_learns_it_from_relays() -> None:
    async with edge(None) as (_, discovery, table):
        discovery.learn(RELAY, batch(OWN, "public", Health.DEGRADED))
        (entry,) = table
        assert (entry.health, entry.load.running) == (Health.DEGRADED, 5)
        discovery.learn(RELAY, gone(OWN))
        assert len(table) == 0


async def test_the_link_of_a_node_to_itself_changes_nothing_it_says_of_itself() -> None:
    """It may be lost and opened again while its engines go on."""
    async with edge(OWN.peer_id) as (network, _, table):
        table.describe(OWN.peer_id, descriptor(OWN, "tiny"), 0.0)
        link = await network.connect(OWN.peer_id)
        (entry,) = table
        assert not entry.linked
        table.linked(OWN.peer_id, "local", 0.0)
        link.close()
        await link.ended.wait()
        assert list(table) == [entry]
        assert entry.linked


async def test_a_link_counts_whatever_roles_the_peer_named() -> None:
    """An edge can become a provider while it runs; its Hello was before that."""
    async with edge(None) as (network, discovery, table):
        discovery.learn(RELAY, batch(OTHER, "tiny", Health.HEALTHY))
        link = await network.connect(OTHER.peer_id)
        assert Role.PROVIDER not in link.roles
        (entry,) = table
        assert entry.linked
        assert entry.path == link.path
        link.close()
        await link.ended.wait()
        await wait_all_tasks_blocked()
        assert not entry.linked
        assert list(table) == [entry]


async def test_a_descriptor_of_a_peer_that_is_linked_already_finds_the_link() -> None:
    async with edge(None) as (network, discovery, table):
        await network.connect(OTHER.peer_id)
        discovery.learn(RELAY, batch(OTHER, "tiny", Health.HEALTHY))
        (entry,) = table
        assert entry.linked
        assert replace(entry.descriptor, revision=1) == descriptor(OTHER, "tiny")


class Asked(IdleObserver):
    """Counts who wants a directory."""

    def __init__(self) -> None:
        self.subscriptions = 0

    def announced(self, link: Link, frame: Announcement) -> None:
        self.subscriptions += isinstance(frame, frames.Subscribe)


async def test_a_relay_that_becomes_known_after_its_link_is_asked_then_and_once() -> None:
    """One that joins a node which is edge and relay says who it is a moment after it linked."""
    async with trio.open_nursery() as nursery:
        memory = MemoryMesh(nursery)
        network = await memory.add("edge", Role.EDGE)
        relay = await memory.add("relay", Role.RELAY)
        asked, known, table = Asked(), set[PeerId](), RoutingTable()
        relay.add_observer(asked)
        discovery = Discovery(network, table, relays=known)
        network.add_observer(discovery)
        link = await relay.connect(network.peer)
        link.announce(batch(OTHER, "tiny", Health.HEALTHY))
        await wait_all_tasks_blocked()
        assert (asked.subscriptions, len(table)) == (0, 0)
        known.add(RELAY)
        for _ in range(3):
            discovery.look()
        await wait_all_tasks_blocked()
        assert asked.subscriptions == 1
        link.announce(batch(OTHER, "tiny", Health.HEALTHY))
        await wait_all_tasks_blocked()
        assert len(table) == 1
        nursery.cancel_scope.cancel()
