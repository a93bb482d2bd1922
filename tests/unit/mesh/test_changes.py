"""A node that slept, was stopped or changed networks: what it notices and what it does then."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.models import Descriptor
from aimo_node.errors import CloseCode, NetworkError
from aimo_node.mesh.changes.networks import (
    POLL_SECONDS,
    message_kinds,
    poll_networks,
    snapshot,
)
from aimo_node.mesh.changes.recovery import Recovery
from aimo_node.mesh.changes.wakefulness import AWAY_SECONDS, TICK_SECONDS, Wakefulness
from aimo_node.mesh.directory.warming import WarmLinks
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.pipe import PipeEnd, open_pipe
from aimo_node.mesh.silence import ANSWER_SECONDS, check_links
from aimo_node.protocol import limits
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Session
from aimo_node.routing.table import RoutingTable
from aimo_node.testing.memory_network import MemoryMesh

NODE, PEER, MUTE, RELAY = (PeerId(name) for name in ("node", "peer", "mute", "relay"))


@pytest.mark.parametrize(
    ("steady", "boot", "away"),
    [
        (TICK_SECONDS, TICK_SECONDS, 0.0),
        (TICK_SECONDS + AWAY_SECONDS, TICK_SECONDS, 0.0),
        (31.0, 31.0, 30.0),
        (TICK_SECONDS, 3601.0, 3600.0),
        (0.9, -5.0, 0.0),
    ],
    ids=["awake", "busy", "stopped", "asleep", "clock-set-back"],
)
def test_a_gap_in_either_clock_is_time_away(steady: float, boot: float, away: float) -> None:
    wakefulness = Wakefulness(100.0, 1_000.0)
    assert wakefulness.look(100.0 + steady, 1_000.0 + boot) == away
    after = wakefulness.look(100.0 + steady + TICK_SECONDS, 1_000.0 + boot + TICK_SECONDS)
    assert after == 0.0, "it is told once"


def test_kinds_of_netlink_messages_are_read_and_nonsense_ends_them() -> None:
    def message(kind: int, body: bytes) -> bytes:
        length = 16 + len(body)
        return struct.pack("=IHHII", length, kind, 0, 0, 0) + body + bytes(-length % 4)

    data = message(20, b"abc") + message(21, b"") + message(25, b"12345678")
    assert list(message_kinds(data)) == [20, 21, 25]
    assert list(message_kinds(data[:18])) == [20]
    assert list(message_kinds(bytes(64))) == []
    assert list(message_kinds(b"\xff" * 15)) == []


def test_a_machine_that_does_not_change_looks_the_same() -> None:
    assert snapshot() == snapshot()


async def test_where_nobody_tells_other_addresses_are_seen_soon(autojump_clock: MockClock) -> None:
    addresses, seen = {"192.0.2.1"}, list[float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            poll_networks, lambda: seen.append(trio.current_time()), lambda: frozenset(addresses)
        )
        await trio.sleep(2.5 * POLL_SECONDS)
        assert seen == []
        addresses.add("198.51.100.1")
        await trio.sleep(10 * POLL_SECONDS)
        assert seen == [pytest.approx(3 * POLL_SECONDS)]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked_pair() -> AsyncIterator[tuple[MemoryMesh, MeshNetwork]]:
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        node = await mesh.add("node", Role.EDGE)
        await mesh.add("peer", Role.PROVIDER)
        await node.connect(PEER)
        await wait_all_tasks_blocked()
        yield mesh, node
        nursery.cancel_scope.cancel()


async def test_a_stop_of_ten_minutes_ends_no_link_whose_peer_is_there(
    mock_clock: MockClock,
) -> None:
    """The deadlines have passed unseen: the peer was not silent, this process was not there."""
    async with linked_pair() as (_, node):
        link = node.link(PEER)
        assert link is not None
        mock_clock.jump(600)
        await wait_all_tasks_blocked()
        for _ in range(30):
            mock_clock.jump(1)
            await wait_all_tasks_blocked()
        assert node.link(PEER) is link
        assert not link.session.suspect


async def mute_peer(node: MeshNetwork, nursery: trio.Nursery) -> PipeEnd:
    """Somebody whose Hello was good, and who says nothing more."""
    near, far = open_pipe(MUTE, NODE)
    nursery.start_soon(node.accept, far)
    await near.write(Session(Admission(MUTE), NODE, trio.current_time()).take_output())
    await wait_all_tasks_blocked()
    assert node.link(MUTE) is not None
    return near


async def test_only_links_that_do_not_answer_are_given_up(autojump_clock: MockClock) -> None:
    async with linked_pair() as (_, node), trio.open_nursery() as nursery:
        await mute_peer(node, nursery)
        link = node.link(MUTE)
        assert link is not None
        await trio.sleep(1)
        started = trio.current_time()
        assert await check_links(node) == 1
        assert trio.current_time() - started == pytest.approx(ANSWER_SECONDS)
        assert link.close_code is CloseCode.PeerSilent
        assert node.link(MUTE) is None
        assert node.link(PEER) is not None
        nursery.cancel_scope.cancel()


async def test_a_provider_that_moved_is_asked_whether_it_is_still_where_it_is_linked(
    autojump_clock: MockClock,
) -> None:
    """It has noticed a change of networks, and its link from the old one seems alive here."""
    async with linked_pair() as (_, node), trio.open_nursery() as nursery:
        table = RoutingTable()
        for peer in (MUTE, PEER):
            table.describe(RELAY, Descriptor(peer, 1, (), ()), trio.current_time())
        warm = WarmLinks(node, table)
        nursery.start_soon(warm.run)
        await mute_peer(node, nursery)
        await trio.sleep(1)
        for peer in (MUTE, PEER):
            warm.locate(peer, ["/old"])
            warm.locate(peer, ["/old", f"/relay/p2p/relay/p2p-circuit/p2p/{peer}"])
        await trio.sleep(ANSWER_SECONDS + 0.1)
        assert node.link(MUTE) is not None
        for peer in (MUTE, PEER):
            warm.locate(peer, ["/new"])
        await trio.sleep(ANSWER_SECONDS + 0.1)
        assert node.link(MUTE) is None
        assert node.link(PEER) is not None
        nursery.cancel_scope.cancel()


class DeadEnd:
    """A dialer whose dials never end."""

    async def dial(self, peer, addresses) -> None:
        await trio.sleep_forever()

    async def disconnect(self, peer) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_dial_from_before_the_change_is_given_up_too(autojump_clock: MockClock) -> None:
    """It would else hang in the old network while the new one is fine, for ten seconds."""
    network = MeshNetwork(Admission(NODE))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run, DeadEnd())
        await network.running.wait()
        network.remember(PEER, ["/somewhere"])
        ended: list[float] = []

        async def connect() -> None:
            with pytest.raises(NetworkError, match="since the network changed"):
                await network.connect(PEER)
            ended.append(trio.current_time())

        with trio.fail_after(60):
            async with trio.open_nursery() as dialling:
                dialling.start_soon(connect)
                await trio.sleep(1)
                dialling.start_soon(check_links, network)
        assert ended == [pytest.approx(1 + ANSWER_SECONDS)]
        nursery.cancel_scope.cancel()


async def test_who_was_away_asks_its_links_and_begins_all_back_offs_anew(
    mock_clock: MockClock,
) -> None:
    async with linked_pair() as (_, node), trio.open_nursery() as nursery:
        await mute_peer(node, nursery)
        recovery = Recovery(node)
        changes: list[float] = []
        recovery.on_change.append(lambda: changes.append(trio.current_time()))
        nursery.start_soon(recovery.run)
        await wait_all_tasks_blocked()
        for _ in range(int(limits.SUSPECT_SECONDS)):
            mock_clock.jump(TICK_SECONDS)
            await wait_all_tasks_blocked()
        assert changes == []
        assert node.link(MUTE) is not None
        mock_clock.jump(30)
        await wait_all_tasks_blocked()
        assert changes == [pytest.approx(30 + int(limits.SUSPECT_SECONDS))]
        mock_clock.jump(ANSWER_SECONDS)
        await wait_all_tasks_blocked()
        assert node.link(MUTE) is None
        assert node.link(PEER) is not None
        mock_clock.autojump_threshold = 0  # goodbyes take their time
        nursery.cancel_scope.cancel()
