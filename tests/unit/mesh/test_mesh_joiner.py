"""Staying in the mesh: when to dial again, and when not to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.errors import CloseCode, JoinFailed
from aimo_node.mesh.joiner import (
    BACKOFF_SECONDS_MAX,
    FIRST_JOIN_SECONDS,
    HEAD_START_SECONDS,
    SPARE_BACKOFF_SECONDS_MAX,
    STABLE_SECONDS,
    Joiner,
)
from aimo_node.mesh.link import Link
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


LEARNED = [PeerId(f"learned-{number}") for number in range(4)]


def long_book(network: MeshNetwork) -> RelayBook:
    """One relay that was told, and four that were learned."""
    book = RelayBook(network.peer, {RELAY: ["/memory/relay"]})
    for peer in LEARNED:
        book.learn(RelayAnnouncement(peer, 1, 1, (f"/memory/{peer}",)), 0)
    return book


def knowing_joiner(network: MeshNetwork, *, joins_all: bool = False) -> Joiner:
    return Joiner(network, long_book(network), random.Random(1), joins_all=joins_all)


@asynccontextmanager
async def many_relays(*, joins_all: bool = False) -> AsyncIterator[tuple[MemoryMesh, MeshNetwork]]:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        for peer in (RELAY, *LEARNED):
            await mesh.add(peer, Role.RELAY)
        joiner = knowing_joiner(network, joins_all=joins_all)
        nursery.start_soon(joiner.run)
        await joiner.wait_joined()
        await trio.sleep(HEAD_START_SECONDS + 1)
        yield mesh, network
        nursery.cancel_scope.cancel()


def linked(network: MeshNetwork) -> set[PeerId]:
    return {link.peer for link in network.links()}


async def test_a_node_keeps_two_relays_whatever_dies_and_returns_to_the_one_it_was_told(
    autojump_clock,
) -> None:
    async with many_relays() as (mesh, network):
        assert len(linked(network)) == 2
        assert RELAY in linked(network)
        for _ in range(2):
            (learned,) = linked(network) - {RELAY}
            mesh.remove(learned)
            await trio.sleep(HEAD_START_SECONDS + 0.5)
            assert len(linked(network)) == 2
        mesh.remove(RELAY)
        await trio.sleep(HEAD_START_SECONDS + 0.5)
        survivors = linked(network)
        assert len(survivors) == 2
        assert RELAY not in survivors
        await mesh.add("relay", Role.RELAY)
        await trio.sleep(BACKOFF_SECONDS_MAX)
        assert linked(network) == {RELAY, *survivors}


async def test_relays_that_were_told_come_first_even_if_they_take_a_moment(autojump_clock) -> None:
    async with many_relays() as (mesh, network):
        (learned,) = linked(network) - {RELAY}
        del mesh.dials[:]
        for link in network.links():
            if link.peer == RELAY:
                link.close()
        await trio.sleep(5)
        assert linked(network) == {RELAY, learned}
        assert mesh.dials == [(NODE, RELAY)], "nobody else had to be asked"


async def test_a_relay_links_to_all_others_it_knows(autojump_clock) -> None:
    async with many_relays(joins_all=True) as (_, network):
        assert linked(network) == {RELAY, *LEARNED}


async def test_relays_that_are_gone_are_tried_ever_more_rarely_until_there_is_reason_to_hope(
    autojump_clock,
) -> None:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        await mesh.add("relay", Role.RELAY)
        joiner = knowing_joiner(network)
        nursery.start_soon(joiner.run)
        tried: list[PeerId] = []
        connect = network.connect

        async def counting(peer: PeerId) -> Link:
            tried.append(peer)
            return await connect(peer)

        network.connect = counting  # type: ignore[method-assign]  # only listens
        await trio.sleep(600)
        count = len(tried)
        assert count < 4 * (10 + 600 / SPARE_BACKOFF_SECONDS_MAX)
        assert linked(network) == {RELAY}
        for peer in LEARNED:
            await mesh.add(peer, Role.RELAY)
        joiner.retry_now()
        await wait_all_tasks_blocked()
        assert len(linked(network)) == 2
        nursery.cancel_scope.cancel()


async def test_who_is_no_relay_does_not_count_and_who_refuses_is_forgotten(autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        await mesh.add("relay", Role.RELAY)
        await mesh.add(LEARNED[0], Role.PROVIDER)
        await mesh.add(LEARNED[1], Role.RELAY, secret=b"s" * 32)
        await mesh.add(LEARNED[2], Role.RELAY)
        book = long_book(network)
        joiner = Joiner(network, book, random.Random(1), joins_all=True)
        nursery.start_soon(joiner.run)
        await trio.sleep(30)
        assert {one.peer for one in joiner.relays()} == {RELAY, LEARNED[2]}
        assert LEARNED[1] not in book
        assert len(book) == 4
        nursery.cancel_scope.cancel()


async def test_a_told_relay_that_is_gone_is_no_reason_to_give_up_while_another_lets_us_in(
    autojump_clock,
) -> None:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        network = await mesh.add("node")
        await mesh.add(LEARNED[3], Role.RELAY)
        joiner = knowing_joiner(network)
        nursery.start_soon(joiner.run)
        await joiner.wait_joined()
        assert trio.current_time() < 5
        assert joiner.joined
        nursery.cancel_scope.cancel()
