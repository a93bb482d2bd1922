"""Staying in the mesh: when to dial again, and when not to."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import CloseCode, JoinFailed
from aimo_node.mesh.joiner import BACKOFF_SECONDS_MAX, FIRST_JOIN_SECONDS, STABLE_SECONDS, Joiner
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.relays.book import RelayBook
from aimo_node.testing.memory_network import MemoryMesh

NODE, RELAY = PeerId("node"), PeerId("relay")


def joiner_of(network: MeshNetwork) -> Joiner:
    return Joiner(network, RelayBook(network.peer, {RELAY: ["/memory/relay"]}), random.Random(1))


async def test_links_that_end_at_once_are_dialled_ever_more_rarely(autojump_clock) -> None:
    """Two nodes with one identity would else throw each other out ten times a second."""
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        relay = await mesh.add("relay", Role.RELAY)
        nursery.start_soon(joiner_of(network).run)
        with trio.move_on_after(60):
            while True:
                await trio.sleep(0.05)
                for link in relay.links():
                    link.close(CloseCode.DuplicateLink, "there is another link between us")
        assert len(mesh.dials) < 10 + 60 / (BACKOFF_SECONDS_MAX / 2)
        nursery.cancel_scope.cancel()


async def test_relay_that_was_there_for_long_is_dialled_again_at_once(autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        relay = await mesh.add("relay", Role.RELAY)
        nursery.start_soon(joiner_of(network).run)
        for _ in range(5):
            await trio.sleep(STABLE_SECONDS + 1)
            for link in relay.links():
                link.close()
            await trio.sleep(0.5)
            assert network.link(RELAY) is not None
        nursery.cancel_scope.cancel()


async def test_relay_whose_address_was_forgotten_is_found_again(autojump_clock) -> None:
    """A relay may serve models too; when it stops, its addresses as a provider are forgotten."""
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        relay = await mesh.add("relay", Role.RELAY)
        joiner = joiner_of(network)
        nursery.start_soon(joiner.run)
        await joiner.wait_joined()
        await wait_all_tasks_blocked()
        network.forget(RELAY)
        for link in relay.links():
            link.close()
        await trio.sleep(BACKOFF_SECONDS_MAX)
        assert joiner.joined
        nursery.cancel_scope.cancel()


async def test_node_that_drains_joins_nobody_any_more(autojump_clock) -> None:
    """Its idle links end; dialling again would only make others greet it anew, until its end."""
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        await mesh.add("relay", Role.RELAY)
        joiner = joiner_of(network)
        nursery.start_soon(joiner.run)
        await joiner.wait_joined()
        network.drain()
        await trio.sleep(30)
        assert not joiner.joined
        assert mesh.dials == [(NODE, RELAY)]
        nursery.cancel_scope.cancel()


async def test_nobody_there_and_nobody_wanting_us_are_told_apart(autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        lonely = joiner_of(await mesh.add("node"))
        nursery.start_soon(lonely.run)
        started = trio.current_time()
        with pytest.raises(JoinFailed, match=r"(no address|nobody listens).*does the relay run"):
            await lonely.wait_joined()
        assert trio.current_time() - started == pytest.approx(FIRST_JOIN_SECONDS)
        await mesh.add("relay", Role.RELAY, secret=b"s" * 32)
        refused = joiner_of(await mesh.add("stranger"))
        nursery.start_soon(refused.run)
        with trio.fail_after(1), pytest.raises(JoinFailed, match="another mesh; is the join"):
            await refused.wait_joined()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
