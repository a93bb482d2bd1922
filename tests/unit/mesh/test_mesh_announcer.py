"""What a provider says of itself: what is new at once, nothing too often, nothing without need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import ModelName, PeerId, Role
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.mesh.directory.announcer import LOOK_SECONDS, SAYINGS_MAX, Announcer, Voice
from aimo_node.mesh.directory.relay import ANNOUNCEMENTS_PER_SECOND
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import frames, limits
from aimo_node.protocol.descriptors import read_descriptor
from aimo_node.protocol.session import Announcement
from aimo_node.testing.memory_network import MemoryMesh

PAIR = KeyPair.from_seed(bytes(31) + b"\x01")
OWN = PAIR.peer_id
RELAY, OTHER_RELAY = PeerId("relay"), PeerId("other relay")
NOTHING = Descriptor(OWN, 1, ())
TINY = ModelInfo(ModelName("tiny"))
OFFER = replace(
    NOTHING,
    models=(TINY,),
    engine_state=EngineState.RUNNING,
    engines=(EngineInfo("llama", "llama", EngineState.RUNNING, (TINY.name,)),),
)
DEAD = replace(
    OFFER, models=(), engines=(EngineInfo("llama", "llama", EngineState.ERROR, (TINY.name,)),)
)


class Ear(IdleObserver):
    """What one relay is told, with the time."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, Announcement]] = []

    def announced(self, link: Link, frame: Announcement) -> None:
        self.heard.append((trio.current_time(), frame))

    def descriptors(self) -> list[Descriptor]:
        return [read_descriptor(one) for _, one in self.heard if isinstance(one, frames.Descriptor)]

    def heartbeats(self) -> list[frames.Heartbeat]:
        return [one for _, one in self.heard if isinstance(one, frames.Heartbeat)]


class Provider:
    """Something that can be told what to say of itself."""

    def __init__(self, network: MeshNetwork) -> None:
        self.network = network
        self.descriptor, self.health = NOTHING, Health.HEALTHY
        self.announcer = Announcer(PAIR, network, Voice(lambda: self.descriptor, self._status))
        network.add_observer(self.announcer)

    def _status(self) -> Status:
        return Status(OWN, 1, 0, self.health, Load())


@asynccontextmanager
async def announcing(descriptor: Descriptor) -> AsyncIterator[tuple[Provider, Ear, MemoryMesh]]:
    """A provider linked to a relay, whose announcer runs."""
    async with trio.open_nursery() as nursery:
        memory = MemoryMesh(nursery)
        ear = Ear()
        (await memory.add(RELAY, Role.RELAY)).add_observer(ear)
        provider = Provider(await memory.add(OWN, Role.EDGE))
        provider.descriptor = descriptor
        await provider.network.connect(RELAY)
        nursery.start_soon(provider.announcer.run)
        await wait_all_tasks_blocked()
        yield provider, ear, memory
        nursery.cancel_scope.cancel()


async def test_an_engine_that_dies_or_comes_back_is_told_without_being_asked_for(
    autojump_clock,
) -> None:
    """Nobody calls `changed`: a dead engine tells nobody. Its health may not change either, as
    long as another engine is well."""
    async with announcing(OFFER) as (provider, ear, _):
        for state in (DEAD, OFFER, replace(OFFER, models=(replace(TINY, digest=b"x" * 32),))):
            await trio.sleep(3)
            provider.descriptor = state
            await trio.sleep(LOOK_SECONDS * 1.1)
            said = ear.descriptors()[-1]
            assert replace(said, revision=0) == state
        assert [one.revision for one in ear.descriptors()] == [1, 2, 3, 4]


async def test_a_change_of_health_is_told_between_two_heartbeats(autojump_clock) -> None:
    async with announcing(OFFER) as (provider, ear, _):
        await trio.sleep(1)
        provider.health = Health.DEGRADED
        await trio.sleep(LOOK_SECONDS * 1.1)
        assert ear.heartbeats()[-1].status == Health.DEGRADED
        assert len(ear.descriptors()) == 1


async def test_what_does_not_change_is_not_repeated(autojump_clock) -> None:
    async with announcing(OFFER) as (_, ear, _):
        await trio.sleep(10 * limits.HEARTBEAT_SECONDS)
        assert len(ear.descriptors()) == 1
        assert 10 <= len(ear.heartbeats()) <= 12


async def test_an_engine_that_flaps_is_told_no_faster_than_a_relay_puts_up_with(
    autojump_clock,
) -> None:
    async with announcing(OFFER) as (provider, ear, _):
        seconds = 60
        for number in range(seconds * 20):
            provider.descriptor = replace(OFFER, requests_max=number)
            provider.announcer.changed()
            await trio.sleep(0.05)
        assert len(ear.heard) <= seconds * ANNOUNCEMENTS_PER_SECOND / 2 + 2 * (SAYINGS_MAX + 1)
        assert len(ear.descriptors()) >= seconds


async def test_a_node_that_never_offered_anything_says_nothing(autojump_clock) -> None:
    """Every edge runs an announcer: it may become a provider."""
    async with announcing(NOTHING) as (provider, ear, _):
        provider.announcer.changed()
        await trio.sleep(limits.DESCRIPTOR_SECONDS * 1.5)
        assert ear.heard == []
        provider.descriptor = OFFER
        await trio.sleep(LOOK_SECONDS * 1.1)
        assert [one.models for one in ear.descriptors()] == [(TINY,)]


async def test_an_engine_without_models_is_worth_saying(autojump_clock) -> None:
    """It starts, or failed: its owner wants to see that."""
    async with announcing(DEAD) as (_, ear, _):
        await trio.sleep(LOOK_SECONDS * 1.1)
        assert [one.engines for one in ear.descriptors()] == [DEAD.engines]
        assert ear.heartbeats()


async def test_when_everything_was_removed_it_is_said_once(autojump_clock) -> None:
    async with announcing(OFFER) as (provider, ear, memory):
        await trio.sleep(1)
        provider.descriptor = NOTHING
        await trio.sleep(LOOK_SECONDS * 1.1)
        last = ear.descriptors()[-1]
        assert (last.models, last.engines, last.revision) == ((), (), 2)
        told = len(ear.heard)
        await trio.sleep(limits.DESCRIPTOR_SECONDS * 1.5)
        newcomer = Ear()
        (await memory.add(OTHER_RELAY, Role.RELAY)).add_observer(newcomer)
        await provider.network.connect(OTHER_RELAY)
        await trio.sleep(limits.HEARTBEAT_SECONDS * 2)
        assert len(ear.heard) == told
        assert newcomer.heard == []
        provider.descriptor = OFFER
        await trio.sleep(LOOK_SECONDS * 1.1)
        assert ear.descriptors()[-1].revision == newcomer.descriptors()[-1].revision == 3


async def test_news_that_a_new_relay_hears_first_reaches_the_others_too(autojump_clock) -> None:
    async with announcing(OFFER) as (provider, ear, memory):
        await trio.sleep(1)
        newcomer = Ear()
        (await memory.add(OTHER_RELAY, Role.RELAY)).add_observer(newcomer)
        provider.descriptor = DEAD
        await provider.network.connect(OTHER_RELAY)
        await trio.sleep(2 * LOOK_SECONDS)
        assert replace(newcomer.descriptors()[-1], revision=0) == DEAD
        assert replace(ear.descriptors()[-1], revision=0) == DEAD


async def test_a_descriptor_nobody_would_take_is_complained_of_once_and_the_node_lives_on(
    autojump_clock,
) -> None:
    async with announcing(OFFER) as (provider, ear, _):
        await trio.sleep(1)
        many = tuple(ModelInfo(ModelName(f"m{n}")) for n in range(65))
        provider.descriptor = replace(OFFER, models=many)
        with capture_logs() as logs:
            await trio.sleep(limits.HEARTBEAT_SECONDS * 3)
        (complaint,) = [one for one in logs if one["event"] == "descriptor.not_announced"]
        assert "64 models" in complaint["reason"]
        assert len(ear.descriptors()) == 1
        assert len(ear.heartbeats()) >= 3
        provider.descriptor = replace(OFFER, models=many[:64])
        await trio.sleep(LOOK_SECONDS * 1.1)
        assert len(ear.descriptors()[-1].models) == 64
