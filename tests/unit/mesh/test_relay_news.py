"""Who hears of which relays, and whose word for it counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.relays.book import RelayBook
from aimo_node.mesh.relays.news import LOOK_SECONDS, NEWS_MAX, OwnRelay, RelayNews
from aimo_node.protocol import frames
from aimo_node.protocol.relays import announce_relay
from aimo_node.protocol.signing import descriptor_bytes_to_sign, relay_bytes_to_sign
from aimo_node.testing.memory_network import MemoryMesh

KEYS = [KeyPair.from_seed(bytes([number]) * 32) for number in range(1, 120)]
FIRST, SECOND, THIRD, NODE, LIAR = KEYS[:5]


def address(key: KeyPair, port: int = 4001) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{key.peer_id}"


def signed(key: KeyPair, *addresses: str, tag=relay_bytes_to_sign) -> frames.Relay:
    where = addresses or (address(key),)
    body = announce_relay(RelayAnnouncement(key.peer_id, 1, 1, where))
    return frames.Relay(body, sign(key, tag(body)))


def batch(*relays: frames.Relay) -> frames.Directory:
    return frames.Directory(full=False, relays=list(relays))


class Member:
    """A node with a book."""

    def __init__(self, key: KeyPair, network: MeshNetwork, book: RelayBook, roles: Role) -> None:
        self.key = key
        self.network = network
        self.book = book
        self.addresses = [f"{address(LIAR)}/p2p-circuit/p2p/{key.peer_id}", address(key)]
        own = OwnRelay(key, 1, lambda: self.addresses) if Role.RELAY in roles else None
        self.news = RelayNews(network, book, own)
        network.add_observer(self.news)

    @property
    def known(self) -> set[PeerId]:
        return {relay.peer for relay in self.book}


class Nodes:
    """A mesh in memory, whose nodes know what they were told and what they hear."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.memory = MemoryMesh(nursery)

    async def add(self, key: KeyPair, roles: Role, *told: KeyPair) -> Member:
        network = await self.memory.add(key.peer_id, roles)
        book = RelayBook(key.peer_id, {one.peer_id: [address(one)] for one in told})
        member = Member(key, network, book, roles)
        self._nursery.start_soon(member.news.run)
        for one in told:
            await network.connect(one.peer_id)
        await wait_all_tasks_blocked()
        return member


@asynccontextmanager
async def nodes() -> AsyncIterator[Nodes]:
    async with trio.open_nursery() as nursery:
        yield Nodes(nursery)
        nursery.cancel_scope.cancel()


async def test_everybody_linked_to_a_relay_hears_of_the_others_whoever_comes_first(
    autojump_clock,
) -> None:
    async with nodes() as made:
        first = await made.add(FIRST, Role.RELAY)
        early = await made.add(NODE, Role.PROVIDER, FIRST)
        second = await made.add(SECOND, Role.RELAY, FIRST)
        late = await made.add(KEYS[10], Role.EDGE, FIRST)
        third = await made.add(THIRD, Role.RELAY, FIRST)
        everybody = {FIRST.peer_id, SECOND.peer_id, THIRD.peer_id}
        assert first.known == everybody - {FIRST.peer_id}
        assert second.known == everybody - {SECOND.peer_id}
        assert third.known == everybody - {THIRD.peer_id}
        assert early.known == late.known == everybody
        known = late.book.get(SECOND.peer_id)
        assert known is not None
        assert known.addresses == (address(SECOND),), "no circuits"


async def test_a_relay_that_moves_says_so_and_one_that_is_gone_is_named_no_more(
    autojump_clock,
) -> None:
    async with nodes() as made:
        await made.add(FIRST, Role.RELAY)
        second = await made.add(SECOND, Role.RELAY, FIRST)
        node = await made.add(NODE, Role.PROVIDER, FIRST)
        second.addresses = [address(SECOND, 4002)]
        await trio.sleep(LOOK_SECONDS)
        await wait_all_tasks_blocked()
        known = node.book.get(SECOND.peer_id)
        assert known is not None
        assert known.addresses == (address(SECOND, 4002),)
        (link,) = second.network.links()
        link.close()
        await link.ended.wait()
        assert SECOND.peer_id in node.known
        late = await made.add(KEYS[10], Role.EDGE, FIRST)
        assert late.known == {FIRST.peer_id}
        await second.network.connect(FIRST.peer_id)
        await wait_all_tasks_blocked()
        assert late.known == {FIRST.peer_id, SECOND.peer_id}, "it is back, and as it was"


async def test_only_relays_that_are_known_as_such_are_believed(autojump_clock) -> None:
    """A member can link to an edge, call itself a relay, and name others."""
    async with nodes() as made:
        await made.add(FIRST, Role.RELAY)
        edge = await made.add(NODE, Role.EDGE, FIRST)
        provider = await made.add(SECOND, Role.PROVIDER, FIRST)
        for liar in (provider, await made.add(LIAR, Role.RELAY)):
            link = await liar.network.connect(NODE.peer_id)
            link.announce(batch(signed(LIAR), signed(KEYS[20])))
        await wait_all_tasks_blocked()
        assert edge.known == {FIRST.peer_id}


async def test_what_is_not_signed_by_the_relay_itself_is_refused(autojump_clock) -> None:
    async with nodes() as made:
        first = await made.add(FIRST, Role.RELAY)
        edge = await made.add(NODE, Role.EDGE, FIRST)
        forged = frames.Relay(signed(SECOND).body, signed(LIAR).signature)
        bad = [
            forged,
            signed(SECOND, address(THIRD)),
            signed(SECOND, "nonsense"),
            signed(SECOND, tag=descriptor_bytes_to_sign),
            frames.Relay(b"\xc1", bytes(64)),
            frames.Relay(announce_relay(RelayAnnouncement(PeerId("x"), 1, 1, ())), bytes(64)),
        ]
        (link,) = first.network.links()
        link.announce(batch(*bad, signed(THIRD)))
        await wait_all_tasks_blocked()
        assert edge.known == {FIRST.peer_id, THIRD.peer_id}, "one bad one spoils only itself"


async def test_a_relay_cannot_make_others_check_and_pass_on_without_end(autojump_clock) -> None:
    async with nodes() as made:
        first = await made.add(FIRST, Role.RELAY)
        listener = await made.add(NODE, Role.EDGE, FIRST)
        liar = await made.add(LIAR, Role.RELAY, FIRST)
        link = liar.network.link(FIRST.peer_id)
        assert link is not None
        before = sum(one.bytes_out for one in first.network.links())
        for number in range(2 * NEWS_MAX):
            body = announce_relay(RelayAnnouncement(LIAR.peer_id, 2, number, (address(LIAR),)))
            link.announce(batch(frames.Relay(body, sign(LIAR, relay_bytes_to_sign(body)))))
        await wait_all_tasks_blocked()
        told = sum(one.bytes_out for one in first.network.links()) - before
        assert told < (NEWS_MAX + 1) * 300
        known = listener.book.get(LIAR.peer_id)
        assert known is not None
        assert known.version[1] < NEWS_MAX
