"""A mesh with an authority, seen from its parts: gossip, whom an invite is shown to, `aimo up`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from aimo_node.assembly.membership import membership
from aimo_node.assembly.node import run_node
from aimo_node.config.settings import (
    EdgeSettings,
    MeshSettings,
    NodeSettings,
    ProviderSettings,
    Settings,
)
from aimo_node.domain.ids import Role
from aimo_node.domain.join import parse_join
from aimo_node.domain.ready import ReadyLine
from aimo_node.errors import ConfigError, NetworkError
from aimo_node.mesh.directory.exchange import TOPIC, RelayExchange
from aimo_node.mesh.directory.gossip import Gossip
from aimo_node.mesh.directory.relay import RelayDirectory
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from tests.integration.certified_nodes import Mesh, Node

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
LISTEN_AT = ("/ip4/127.0.0.1/tcp/9/p2p/12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB",)
NEIGHBOUR_SECONDS = 10.0
QUIET_SECONDS = 2.0
"""Two of gossipsub's heartbeats: an admitted relay is a neighbour by then."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    async with made.relay.running():
        await made.relay.join(made.relay, b"")
        yield made


async def test_only_a_certified_relay_may_subscribe_to_what_relays_say(mesh: Mesh) -> None:
    """A member with another role, and who is no member, stay strangers to gossipsub."""
    directory = RelayDirectory(mesh.relay.network)
    relay, edge = mesh.node("relay-2", Role.RELAY), mesh.node("edge", Role.EDGE)
    stranger = mesh.node("stranger", Role.RELAY)
    exchange = RelayExchange(mesh.relay.identity, mesh.relay.host, mesh.relay.network, directory)
    async with (
        relay.running(),
        edge.running(),
        stranger.running(),
        Gossip(relay.host, accepts=lambda _: True) as by_relay,
        Gossip(edge.host, accepts=lambda _: True) as by_edge,
        Gossip(stranger.host, accepts=lambda _: True) as by_stranger,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(exchange.run)
        for gossip in (by_relay, by_edge, by_stranger):
            await gossip.subscribe(TOPIC)
        for node in (edge, relay):
            await node.join(mesh.relay, await mesh.invite(node.roles))
            await node.connect(mesh.relay)
        stream = await stranger.host.dial(
            mesh.relay.peer, mesh.relay.host.addresses(), protocol="/aimo/members/1"
        )
        with trio.fail_after(NEIGHBOUR_SECONDS):
            while not by_relay.neighbours(TOPIC):  # noqa: ASYNC110 (libp2p tells nobody)
                await trio.sleep(0.05)
        await trio.sleep(QUIET_SECONDS)  # nothing is to happen, so there is nothing to wait for
        assert not by_edge.neighbours(TOPIC)
        assert not by_stranger.neighbours(TOPIC)
        await stream.reset()
        nursery.cancel_scope.cancel()


class Recording:
    """A host that notes whom it was to dial, and reaches nobody."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def dial(self, peer, addresses, *, protocol=None):
        self.dialled.append(peer)
        raise NetworkError("nobody listens there")


async def test_an_invite_is_shown_only_to_those_it_names(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    mesh = Mesh(tmp_path)
    node, other = mesh.node("a", Role.EDGE), mesh.node("b", Role.RELAY)
    addresses = {other.peer: ["/ip4/127.0.0.1/tcp/9"], mesh.relay.peer: ["/ip4/127.0.0.1/tcp/9"]}
    home = Home(addresses, b"invite", frozenset({mesh.relay.peer}), None, Role.EDGE)
    enrolment = Enrolment(home, node.credential, node.members, random.Random(1))
    host = Recording()
    with trio.move_on_after(5):
        await enrolment.obtain(host)
    assert set(host.dialled) == {mesh.relay.peer}


def settings(state: Path, roles: Role, **mesh: object) -> Settings:
    return Settings(
        node=NodeSettings(state=state),
        mesh=MeshSettings(listen=LISTEN, **mesh),
        provider=ProviderSettings(engine="echo", model="echo"),
        edge=EdgeSettings(http="127.0.0.1:0" if Role.EDGE in roles else "off"),
    ).for_roles(roles)


async def start_and_stop(chosen: Settings, roles: Role) -> ReadyLine:
    stop, lines = trio.Event(), []

    def on_ready(line: ReadyLine) -> None:
        lines.append(line)
        stop.set()

    with trio.fail_after(20):
        await run_node(chosen, roles, stop=stop, on_ready=on_ready)
    return lines[0]


async def test_everything_in_one_process_can_be_the_authority(tmp_path: Path) -> None:
    """Its roles talk to each other as members do, over its link to itself."""
    roles = Role.RELAY | Role.PROVIDER | Role.EDGE
    ready = await start_and_stop(settings(tmp_path, roles, authority=True), roles)
    assert ready.models == ("echo",)
    assert ready.join is not None
    target = parse_join(ready.join)
    assert target.mesh is not None
    assert target.secret is None
    assert not target.invite
    for name in ("authority.pem", "members.sqlite", "certificate"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "mesh.secret").exists()
    again = await start_and_stop(settings(tmp_path, roles, authority=True), roles)
    assert parse_join(str(again.join)).mesh == target.mesh


async def test_a_kept_certificate_is_enough_to_join_by_a_plain_address(mesh: Mesh) -> None:
    member: Node = mesh.node("member", Role.EDGE)
    async with member.running():
        await member.join(mesh.relay, await mesh.invite())
    state = mesh.folder / "member"
    chosen = settings(state, Role.EDGE, join=(mesh.relay.host.addresses()[0],))
    targets = [parse_join(text) for text in chosen.mesh.join]
    made = membership(chosen, targets, member.identity, Role.EDGE)
    assert made.doorkeeper.one_sided
    assert parse_join(str(made.join_string(LISTEN_AT))).mesh == mesh.key.public_key
    with pytest.raises(ConfigError, match="--role relay"):
        membership(chosen, targets, member.identity, Role.RELAY)


async def test_a_member_started_without_its_relays_does_not_begin_another_mesh(mesh: Mesh) -> None:
    """As a relay that was the authority until the key was moved elsewhere."""
    member: Node = mesh.node("member", Role.RELAY)
    async with member.running():
        await member.join(mesh.relay, await mesh.invite(Role.RELAY))
    chosen = settings(mesh.folder / "member", Role.RELAY)
    with pytest.raises(ConfigError, match="name a relay of it with --join"):
        membership(chosen, [], member.identity, Role.RELAY)
    assert not (mesh.folder / "member" / "mesh.secret").exists()


@pytest.mark.parametrize(
    ("mesh_settings", "roles", "said"),
    [
        ({"authority": True}, Role.PROVIDER, "is a relay"),
        ({"join": LISTEN_AT}, Role.EDGE, "wants its secret"),
    ],
)
async def test_what_does_not_go_together_is_refused_before_anything_starts(
    tmp_path: Path, mesh_settings: dict, roles: Role, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        await start_and_stop(settings(tmp_path, roles, **mesh_settings), roles)
