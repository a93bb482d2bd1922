"""What a member may do to a relay, and a relay to an edge: bounded, and nobody else suffers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import ModelName, PeerId, Role
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status
from aimo_node.mesh.directory import discovery as discovery_module
from aimo_node.mesh.directory import relay as relay_module
from aimo_node.mesh.directory.discovery import Discovery
from aimo_node.mesh.directory.relay import (
    ANNOUNCEMENTS_MAX,
    ANNOUNCEMENTS_PER_SECOND,
    RelayDirectory,
)
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol import frames, limits
from aimo_node.protocol.descriptors import describe, heartbeat_of
from aimo_node.protocol.signing import descriptor_bytes_to_sign
from aimo_node.routing.table import RoutingTable
from aimo_node.testing.memory_network import MemoryMesh

RELAY, EDGE = PeerId("relay"), PeerId("edge")


def key(number: int) -> KeyPair:
    return KeyPair.from_seed(number.to_bytes(32, "big"))


def signed(pair: KeyPair, revision: int = 1) -> frames.Descriptor:
    body = describe(
        Descriptor(
            pair.peer_id,
            1,
            (ModelInfo(ModelName("tiny")),),
            engine_state=EngineState.RUNNING,
            revision=revision,
        )
    )
    return frames.Descriptor(body, sign(pair, descriptor_bytes_to_sign(body)))


def beat(pair: KeyPair, seq: int, health: Health = Health.HEALTHY) -> frames.Heartbeat:
    return heartbeat_of(Status(pair.peer_id, 1, seq, health, Load()))


class Mesh:
    """A relay and an edge that joined it."""

    def __init__(self, mesh: MemoryMesh, relay: MeshNetwork, edge: MeshNetwork) -> None:
        self.memory = mesh
        self.directory = RelayDirectory(relay)
        relay.add_observer(self.directory)
        self.table = RoutingTable()
        self.discovery = Discovery(edge, self.table, relays=frozenset({RELAY}))
        edge.add_observer(self.discovery)
        self.edge = edge


@asynccontextmanager
async def directory_mesh() -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        memory = MemoryMesh(nursery)
        relay = await memory.add("relay", Role.RELAY)
        made = Mesh(memory, relay, await memory.add("edge", Role.EDGE))
        nursery.start_soon(made.directory.run)
        await made.edge.connect(RELAY)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_member_that_floods_a_relay_is_cut_off(autojump_clock) -> None:
    async with directory_mesh() as mesh:
        liar = key(1)
        node = await mesh.memory.add(str(liar.peer_id), Role.PROVIDER)
        link = await node.connect(RELAY)
        link.announce(signed(liar))
        for seq in range(ANNOUNCEMENTS_MAX + 1):
            link.announce(beat(liar, seq))
        await link.closed.wait()
        assert "too much" in link.close_message
        assert len(mesh.directory.book) == 0
        assert mesh.edge.link(RELAY) is not None


async def test_busy_provider_is_never_cut_off(autojump_clock) -> None:
    async with directory_mesh() as mesh:
        provider = key(1)
        node = await mesh.memory.add(str(provider.peer_id), Role.PROVIDER)
        link = await node.connect(RELAY)
        link.announce(signed(provider))
        for seq in range(300):
            link.announce(beat(provider, seq))
            await trio.sleep(1 / ANNOUNCEMENTS_PER_SECOND)
        assert link.usable


async def test_subscribing_again_and_again_does_not_bring_the_directory_again_and_again(
    autojump_clock,
) -> None:
    """Fifty bytes would fetch megabytes."""

    class Counter(Discovery):
        batches = 0

        def learn(self, source: PeerId, batch: frames.Directory) -> None:
            self.batches += 1

    async with directory_mesh() as mesh:
        node = await mesh.memory.add("greedy", Role.EDGE)
        counter = Counter(node, RoutingTable(), relays=frozenset({RELAY}))
        node.add_observer(counter)
        link = await node.connect(RELAY)
        for _ in range(20):
            link.announce(frames.Subscribe([]))
        await trio.sleep(2.5 * limits.DIRECTORY_SECONDS)
        assert 1 <= counter.batches <= 3


async def test_edge_believes_the_directory_of_the_relays_it_joined_only(autojump_clock) -> None:
    """Else every member could declare all the others offline, and get every prompt."""
    async with directory_mesh() as mesh:
        honest = key(1)
        provider = await mesh.memory.add(str(honest.peer_id), Role.PROVIDER)
        (await provider.connect(RELAY)).announce(signed(honest))
        await trio.sleep(2 * limits.DIRECTORY_SECONDS)
        assert len(mesh.table) == 1
        liar = await mesh.memory.add("liar", Role.PROVIDER | Role.RELAY)
        link = await liar.connect(EDGE)
        link.announce(
            frames.Directory(False, [signed(key(2))], [beat(honest, 99, Health.OFFLINE)], [])
        )
        await wait_all_tasks_blocked()
        assert [(entry.peer, entry.health) for entry in mesh.table] == [
            (honest.peer_id, Health.HEALTHY)
        ]


async def test_relay_gets_no_more_signatures_checked_than_its_share(monkeypatch) -> None:
    monkeypatch.setattr(discovery_module, "CHECKS_MAX", 5)
    async with directory_mesh() as mesh:
        flood = [signed(key(number)) for number in range(1, 11)]
        mesh.discovery.learn(RELAY, frames.Directory(False, flood, [], []))
        assert len(mesh.table) == 5
        mesh.discovery.learn(RELAY, frames.Directory(False, flood[:5], [], []))  # known: free
        other = PeerId("other relay")
        mesh.discovery.learn(other, frames.Directory(False, flood, [], []))
        assert len(mesh.table) == 10


async def test_number_of_other_relays_that_are_heard_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(relay_module, "RELAYS_MAX", 2)
    async with directory_mesh() as mesh:
        for number in range(5):
            batch = frames.Directory(False, [signed(key(number + 1))], [], [])
            mesh.directory.learn(PeerId(f"relay {number}"), batch)
        assert len(mesh.directory.book) == 2


@pytest.mark.parametrize("role", [Role.PROVIDER, Role.RELAY | Role.PROVIDER])
async def test_peer_that_left_leaves_nothing_at_the_relay(autojump_clock, role: Role) -> None:
    async with directory_mesh() as mesh:
        pair = key(1)
        node = await mesh.memory.add(str(pair.peer_id), role)
        link = await node.connect(RELAY)
        link.announce(signed(pair))
        link.announce(frames.Subscribe([]))
        await trio.sleep(2)
        assert len(mesh.directory.book) == 1
        mesh.memory.remove(pair.peer_id)
        await wait_all_tasks_blocked()
        assert len(mesh.directory.book) == 0
        kept = [vars(mesh.directory)[name] for name in ("_wanted", "_told", "_allowances")]
        assert [len(table) for table in kept] == [1, 1, 1]  # the edge's
