"""What a node can say of a link: which path, why, since when, how long the way is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.assembly import peer_commands as commands
from aimo_node.assembly.peer_commands import NODE_PEERS, peer_commands
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.links import LinkFacts
from aimo_node.testing.fake_door import fake_view
from aimo_node.testing.memory_network import MemoryMesh

MINUTE = 60.0


@asynccontextmanager
async def memory_mesh() -> AsyncIterator[MemoryMesh]:
    async with trio.open_nursery() as nursery:
        yield MemoryMesh(nursery)
        nursery.cancel_scope.cancel()


async def test_both_ends_know_the_round_trip_without_waiting_for_silence(autojump_clock) -> None:
    async with memory_mesh() as mesh:
        near, far = await mesh.add("a"), await mesh.add("b")
        started = trio.current_time()
        await near.connect(far.peer)
        await wait_all_tasks_blocked()
        assert trio.current_time() - started < 0.1
        for network, other in ((near, far), (far, near)):
            facts = network.link_facts(other.peer)
            assert facts is not None
            assert facts.round_trip_seconds is not None
        assert near.link_facts(PeerId("nobody")) is None


async def test_a_link_says_who_dialled_and_how_long_ago(autojump_clock) -> None:
    async with memory_mesh() as mesh:
        near, far = await mesh.add("a"), await mesh.add("b")
        link = await near.connect(far.peer)
        await wait_all_tasks_blocked()
        assert abs(link.since - time.time_ns() / 1e9) < MINUTE
        await trio.sleep(3 * MINUTE)
        here, there = near.link_facts(far.peer), far.link_facts(near.peer)
        assert here is not None
        assert there is not None
        assert (here.reason, there.reason) == ("dialled", "dialled us")
        assert 180 <= here.open_seconds < 181
        link.reason = "hole punched"
        again = near.link_facts(far.peer)
        assert again is not None
        assert again.reason == "hole punched"


async def test_the_link_of_a_node_to_itself_says_so(autojump_clock) -> None:
    async with memory_mesh() as mesh:
        node = await mesh.add("a")
        link = await node.connect(node.peer)
        assert (link.path, link.reason) == ("local", "this node itself")
        assert node.links_by_path() == {"direct": 0, "circuit": 0, "local": 1}


def test_times_are_given_in_a_form_for_programs() -> None:
    facts = LinkFacts("direct", None, "", "dialled", 1_795_181_226_400, 1.0, 0.012_345)
    assert facts.since == "2026-11-20T13:27:06Z"
    assert facts.round_trip_ms in {12.34, 12.35}
    assert replace(facts, round_trip_seconds=None).round_trip_ms is None


async def test_the_owner_is_told_of_links_and_of_providers_without_one(
    autojump_clock, monkeypatch
) -> None:
    """In parts, since an answer of the control socket has a limit."""
    monkeypatch.setattr(commands, "PEERS_PER_ANSWER", 2)
    async with memory_mesh() as mesh:
        edge = await mesh.add("edge", Role.EDGE)
        for name, roles in (("far", Role.RELAY), ("gpu", Role.PROVIDER), ("old", Role.NONE)):
            await edge.connect((await mesh.add(name, roles)).peer)
        await wait_all_tasks_blocked()
        views = [fake_view(peer=PeerId("gpu")), fake_view(peer=PeerId("lost"))]
        views[1] = replace(views[1], path="")
        tell = peer_commands(edge, Role.EDGE, lambda: views)[NODE_PEERS]
        first = await tell({})
        second = await tell({"after": first["next"]})
        assert first["node"] == {"peer_id": "edge", "roles": ["edge"]}
        assert (first["next"], second["next"]) == ("gpu", None)
        peers = {peer["id"]: peer for peer in (*first["data"], *second["data"])}
        assert list(peers) == ["far", "gpu", "lost", "old"]
        assert peers["far"]["object"] == "peer"
        assert (peers["far"]["roles"], peers["far"]["models"]) == (["relay"], [])
        assert (peers["gpu"]["path"], peers["gpu"]["reason"]) == ("direct", "dialled")
        assert (peers["gpu"]["object"], peers["gpu"]["models"]) == ("provider", ["fake"])
        assert peers["gpu"]["linked"] is True
        assert (peers["lost"]["linked"], peers["lost"]["path"]) == (False, None)
        assert (peers["lost"]["roles"], peers["lost"]["since"]) == (["provider"], None)
