"""Who knows whom: forty providers on one relay, and relays that tell each other.

Relays and edges are real processes. The providers are real as far as the mesh sees them – host,
links, signed descriptors, heartbeats – but live in the test's own process and have no engine.
"""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.domain.ids import Endpoint, ModelName, PeerId, Role
from aimo_node.domain.join import parse_join, peer_of_address
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status
from aimo_node.mesh.directory.announcer import Announcer, Voice
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.joiner import Joiner
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.relays.book import RelayBook
from aimo_node.protocol import frames
from aimo_node.protocol.descriptors import describe
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.limits import HEARTBEAT_SECONDS
from aimo_node.protocol.signing import descriptor_bytes_to_sign
from tests.e2e.http_client import ask, metric
from tests.e2e.mesh import LOOPBACK, Mesh
from tests.e2e.node_process import NodeProcess, eventually

PROVIDERS = 40
KNOWN_SECONDS = 2.0
GONE_SECONDS = 5.0
GOSSIP_SECONDS = 10.0
"""Two relays first have to find that they both speak of the topic: gossipsub's own heartbeat."""


class FakeProvider:
    """A provider without an engine; `status` is what it says of itself."""

    def __init__(self, number: int, join: str) -> None:
        self.identity = KeyPair.from_seed(number.to_bytes(32, "big"))
        self.peer = self.identity.peer_id
        self.health, self.load = Health.HEALTHY, Load()
        self.models = (ModelInfo(ModelName(f"model-{number}"), endpoints=(Endpoint.CHAT,)),)
        target = parse_join(join)
        admission = Admission(self.peer, target.secret, Role.PROVIDER, agent="test")
        self.network = MeshNetwork(admission)
        self.host = MeshHost(
            self.identity, [LOOPBACK], limits=HostLimits(), on_stream=self.network.accept
        )
        self.announcer = Announcer(
            self.identity, self.network, Voice(self.describe, self._say_status)
        )
        self.network.add_observer(self.announcer)
        relays: dict[PeerId, list[str]] = {}
        for address in target.addresses:
            relays.setdefault(peer_of_address(address), []).append(address)
        book = RelayBook(self.peer, relays)
        self._joiner = Joiner(self.network, book, random.Random(number))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeProvider"]:
        """Joined; leaving the block closes the links and says goodbye."""
        async with self.host, trio.open_nursery() as nursery:
            nursery.start_soon(self.network.run, self.host)
            await self.network.running.wait()
            nursery.start_soon(self.announcer.run)
            nursery.start_soon(self._joiner.run)
            await self._joiner.wait_joined()
            yield self
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await self.network.close()
            nursery.cancel_scope.cancel()

    def describe(self) -> Descriptor:
        """What it offers."""
        return Descriptor(
            self.peer,
            incarnation=1,
            models=self.models,
            addresses=tuple(self.host.addresses()),
            engine="fake",
            engine_state=EngineState.RUNNING,
        )

    def _say_status(self) -> Status:
        return Status(self.peer, 1, 0, self.health, self.load)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path)
    try:
        yield mesh
    finally:
        mesh.end()


async def until_models(edge: NodeProcess, names: set[str], seconds: float) -> None:
    """Wait until the edge offers exactly these models."""
    seen: set[str] = set()

    async def offers() -> bool:
        nonlocal seen
        models = (await ask(edge.port, "GET", "/v1/models")).json["data"]
        seen = {model["id"] for model in models}
        return seen == names

    try:
        await eventually(offers, seconds, f"the edge does not offer {len(names)} models", edge)
    except AssertionError as error:
        raise AssertionError(f"{error}\nit offers {len(seen)}, lacks {names - seen}") from None


async def view_of(edge: NodeProcess, peer: PeerId) -> dict[str, Any]:
    """What the edge says of one provider; empty if it knows none."""
    views = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
    return next((view for view in views if view["id"] == peer), {})


def names_of(providers: list[FakeProvider]) -> set[str]:
    return {str(provider.models[0].name) for provider in providers}


async def start(nursery: trio.Nursery, provider: FakeProvider) -> trio.Event:
    """Run a provider in a task of its own until the event that is returned is set."""

    async def run(leave: trio.Event, task_status) -> None:
        async with provider.running():
            task_status.started()
            await leave.wait()

    leave = trio.Event()
    await nursery.start(lambda task_status: run(leave, task_status))
    return leave


async def test_forty_providers_are_known_in_two_seconds_and_gone_in_five(mesh):
    """The edge is there first, when there is nobody to know yet."""
    relay, edge = mesh.relay(), mesh.edge()
    await relay.ready()
    await edge.ready()
    await until_models(edge, set(), 1)
    providers = [FakeProvider(number, relay.ready_line["join"]) for number in range(PROVIDERS)]
    leaving: dict[FakeProvider, trio.Event] = {}

    async def join(provider: FakeProvider) -> None:
        leaving[provider] = await start(crowd, provider)

    async with trio.open_nursery() as crowd:
        async with trio.open_nursery() as joining:
            for provider in providers:
                joining.start_soon(join, provider)
        await until_models(edge, names_of(providers), KNOWN_SECONDS)
        leaving[providers[0]].set()
        await until_models(edge, names_of(providers[1:]), GONE_SECONDS)
        late = await mesh.edge(name="late").ready()
        await until_models(late, names_of(providers[1:]), KNOWN_SECONDS)
        crowd.cancel_scope.cancel()


async def test_what_a_provider_says_of_itself_reaches_the_edge_at_once(mesh):
    """Not with the next heartbeat, which may be five seconds away."""
    relay, edge = mesh.relay(), mesh.edge()
    await relay.ready()
    await edge.ready()
    provider = FakeProvider(1, relay.ready_line["join"])

    async def is_healthy(status: str) -> bool:
        return (await view_of(edge, provider.peer)).get("status") == status

    async with provider.running():
        await until_models(edge, names_of([provider]), KNOWN_SECONDS)
        for health in (Health.OFFLINE, Health.DEGRADED, Health.HEALTHY):
            provider.health = health
            await eventually(
                lambda health=health: is_healthy(health.text),
                HEARTBEAT_SECONDS - 1,
                f"the edge does not know it is {health.text}",
                edge,
            )
        provider.models = (ModelInfo(ModelName("another"), endpoints=(Endpoint.CHAT,)),)
        provider.announcer.changed()
        await until_models(edge, {"another"}, KNOWN_SECONDS)


async def test_link_that_was_lost_is_opened_again_by_the_edge(mesh):
    """The relay still reports the provider: nobody has to ask for it first."""
    relay, edge = mesh.relay(), mesh.edge()
    await relay.ready()
    await edge.ready()
    provider = FakeProvider(1, relay.ready_line["join"])
    links = []

    async def is_linked() -> bool:
        link = provider.network.link(edge.peer_id)
        if link is not None and link.usable and link not in links:
            links.append(link)
            return True
        return False

    async with provider.running():
        for _ in range(3):
            await eventually(is_linked, 5, "the edge does not link to the provider", edge)
            links[-1].close()


async def test_provider_speaks_for_itself_only(mesh):
    """A member may not describe others, speak for them, or play relay by sending directories."""
    relay, edge = mesh.relay(), mesh.edge()
    await relay.ready()
    await edge.ready()
    honest, liar = (FakeProvider(number, relay.ready_line["join"]) for number in (1, 2))
    async with honest.running(), liar.running():
        await until_models(edge, names_of([honest, liar]), KNOWN_SECONDS)
        body = describe(replace(honest.describe(), incarnation=2, models=liar.models))
        descriptor = frames.Descriptor(body, sign(liar.identity, descriptor_bytes_to_sign(body)))
        status = frames.Heartbeat(honest.peer, 1, 1_000_000, 2, 0, 0, 0, 0)
        batch = frames.Directory(full=True, descriptors=[], statuses=[status], gone=[honest.peer])
        await eventually(
            lambda: liar.network.link(edge.peer_id) is not None, 5, "no link to the edge", edge
        )
        for link in liar.network.links():
            for forged in (descriptor, status, batch):
                link.announce(forged)
        liar.models = (ModelInfo(ModelName("said-last"), endpoints=(Endpoint.CHAT,)),)
        liar.announcer.changed()
        await until_models(edge, {*names_of([honest]), "said-last"}, KNOWN_SECONDS)
        assert (await view_of(edge, honest.peer))["status"] == "healthy"


async def test_relays_tell_each_other_who_comes_and_goes(mesh):
    """The provider is linked to one relay, the edge has joined another."""
    near = mesh.relay()
    await near.ready()
    far = mesh.start(
        "far",
        "relay",
        *("--join", near.ready_line["join"], "--listen", LOOPBACK),
        *("--join-file", str(mesh.folder / "far-join")),
    )
    await far.ready()
    edge = mesh.start(
        "edge",
        "edge",
        *("--join", far.ready_line["join"], "--listen", LOOPBACK, "--http", "127.0.0.1:0"),
    )
    await edge.ready()
    first, second = (FakeProvider(number, near.ready_line["join"]) for number in (1, 2))
    async with first.running():
        await until_models(edge, names_of([first]), GOSSIP_SECONDS)
        async with second.running():
            await until_models(edge, names_of([first, second]), GONE_SECONDS)
        await until_models(edge, names_of([first]), GONE_SECONDS)
        assert (await view_of(edge, first.peer))["path"] == "direct"
    await until_models(edge, set(), GONE_SECONDS)


async def test_relays_that_heard_of_each_other_go_on_without_the_one_that_told_them(mesh):
    """The provider is linked to one of them, and is known to the other when the first is gone."""
    first = await mesh.relay().ready()
    join = ("--join", first.ready_line["join"], "--listen", LOOPBACK)
    near = await mesh.start("near", "relay", *join).ready()
    far = await mesh.start("far", "relay", *join, "--http", "127.0.0.1:0").ready()
    await eventually(lambda: linked_relay(far, near), GOSSIP_SECONDS, "they do not link", far, near)
    first.kill()
    provider = FakeProvider(1, near.ready_line["join"])

    async def knows() -> bool:
        return await metric(far.port, "aimo_directory_providers") == 1

    async with provider.running():
        await eventually(knows, GOSSIP_SECONDS, "the other relay does not know it", near, far)


def linked_relay(one: NodeProcess, other: NodeProcess) -> bool:
    """Whether two relays have a link."""
    said = [node.log for node in (one, other)]
    return "relay.linked" in said[0] and other.peer_id in said[0] and one.peer_id in said[1]
