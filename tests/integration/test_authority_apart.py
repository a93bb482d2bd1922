"""An authority that not everybody can reach, or whose book is a copy from before."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, Refusal
from aimo_node.errors import JoinFailed, NetworkError
from aimo_node.mesh.membership import enrolment, members
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from aimo_node.mesh.membership.members import ask
from aimo_node.protocol.members import Granted, PassOn, Redeem, Refused, Renew
from aimo_node.store.members import SqliteMemberStore
from tests.integration.certified_nodes import START_MS, Mesh, Node
from tests.integration.outsiders import until


class Street:
    """An authority, a relay linked to it, and nodes that are told of the relay only."""

    def __init__(self, mesh: Mesh, relay: Node) -> None:
        self.mesh, self.relay = mesh, relay
        self.authority = mesh.relay

    def home(self, node: Node, invite: bytes = b"", *, named: bool = True) -> Enrolment:
        """What keeps that node's certificate good; `named`: the invite names the relay."""
        at: Mapping[PeerId, Sequence[str]] = {self.relay.peer: self.relay.host.addresses()}
        inviters = frozenset(at) if named else frozenset()
        home = Home(at, invite, inviters, None, node.roles)
        return Enrolment(home, node.credential, node.members, random.Random(1))


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    mesh = Mesh(tmp_path)
    relay = mesh.node("relay-2", Role.RELAY)
    async with mesh.relay.running(), relay.running():
        await mesh.relay.join(mesh.relay, b"")
        await relay.join(mesh.relay, await mesh.invite(Role.RELAY))
        await mesh.relay.connect(relay)  # it dials out, as behind a router
        yield Street(mesh, relay)


async def test_who_reaches_a_relay_only_joins_and_renews_through_it(street: Street) -> None:
    mesh, node = street.mesh, street.mesh.node("far", Role.EDGE)
    async with node.running():
        await street.home(node, await mesh.invite()).obtain(node.host)
        await node.connect(street.relay)
        first = node.credential.certificate
        assert first is not None
        mesh.clock.ms += CERTIFICATE_MS // 2
        await street.home(node)._ask_all(node.host)
        renewed = node.credential.certificate
        assert renewed is not None
        assert renewed.serial > first.serial
        listed = {one.peer: one.roles for one in await mesh.authority.members()}
        assert listed[node.peer] == Role.PROVIDER | Role.EDGE


async def test_a_renewal_finds_its_way_over_the_links_there_are(street: Street) -> None:
    """The address in the join string is the authority's old one; the relay is just linked."""
    node = street.mesh.node("far", Role.EDGE)
    async with node.running():
        await street.home(node, await street.mesh.invite()).obtain(node.host)
        await node.connect(street.relay)
        first = node.credential.certificate
        home = Home({}, b"", frozenset(), None, Role.EDGE)
        await Enrolment(home, node.credential, node.members, random.Random(1))._ask_all(node.host)
        assert node.credential.certificate != first


async def test_an_invite_is_shown_to_no_relay_that_it_does_not_name(street: Street) -> None:
    node = street.mesh.node("far", Role.EDGE)
    node.credential.install(street.mesh.certificate(node.peer))  # of which the book knows nothing
    async with node.running():
        await node.connect(street.relay)
        invite = await street.mesh.invite()
        with pytest.raises(NetworkError, match="no member"):
            await street.home(node, invite, named=False)._ask_all(node.host)
        await street.home(node, invite)._ask_all(node.host)


async def test_a_refusal_comes_through_with_its_reason(street: Street) -> None:
    node = street.mesh.node("far", Role.EDGE)
    async with node.running():
        await street.mesh.authority.set_ban(node.peer, banned=True)
        with pytest.raises(JoinFailed, match="has banned this node"):
            await street.home(node, await street.mesh.invite()).obtain(node.host)


async def test_without_a_link_to_the_authority_a_relay_says_so(street: Street) -> None:
    node = street.mesh.node("far", Role.EDGE)
    async with node.host:
        at = street.relay.peer, street.relay.host.addresses()
        link = street.relay.network.link(street.authority.peer)
        assert link is not None
        link.close()
        answer = await ask(node.host, *at, Renew(START_MS))
    assert isinstance(answer, Refused)
    assert answer.reason == Refusal.NOT_AUTHORITY
    assert "no link to it" in answer.message


async def test_only_relays_pass_questions_on_and_only_once(street: Street) -> None:
    mesh = street.mesh
    async with AsyncExitStack() as stack:
        edge, third = mesh.node("edge", Role.EDGE), mesh.node("relay-3", Role.RELAY)
        for node in (edge, third):
            await stack.enter_async_context(node.running())
            await node.join(mesh.relay, await mesh.invite(node.roles))
            await node.connect(street.relay)
        await edge.connect(street.authority)
        question = PassOn(edge.peer, Redeem(await mesh.invite(), START_MS))
        answer = await ask(edge.host, street.authority.peer, (), question)
        assert isinstance(answer, Refused)
        assert answer.reason == Refusal.NOT_A_MEMBER
        answer = await ask(third.host, street.relay.peer, (), question)
        assert isinstance(answer, Refused)
        assert answer.reason == Refusal.NOT_AUTHORITY
        await third.connect(street.authority)
        assert isinstance(await ask(third.host, street.authority.peer, (), question), Granted)


async def test_a_book_from_before_a_ban_hears_of_it_from_a_member(tmp_path: Path) -> None:
    """And its next list counts on from there: members pass over what is not newer."""
    mesh = Mesh(tmp_path)
    edge, bad = mesh.node("edge", Role.EDGE), mesh.node("bad", Role.EDGE)
    other = mesh.node("other", Role.EDGE)
    async with edge.running():
        async with mesh.relay.running(), bad.running(), other.running():
            await mesh.relay.join(mesh.relay, b"")
            for node in (edge, bad, other):
                await node.join(mesh.relay, await mesh.invite(Role.EDGE))
            copy = (tmp_path / "members.sqlite").read_bytes()
            await edge.connect(mesh.relay)
            for banned in (True, False, True):
                await mesh.authority.set_ban(bad.peer, banned=banned)
                await mesh.relay.members.tell_bans()
            await until(lambda: edge.credential.bans.version == 3)
        (tmp_path / "members.sqlite").write_bytes(copy)
        for kept in (tmp_path / "relay").iterdir():
            kept.unlink()
        restored = Mesh(tmp_path)
        async with restored.relay.running():
            await restored.relay.join(restored.relay, b"")
            await edge.connect(restored.relay)
            await until(lambda: restored.relay.credential.bans.peers == {bad.peer})
            await restored.authority.set_ban(other.peer, banned=True)
            await restored.relay.members.tell_bans()
            await until(lambda: edge.credential.bans.peers == {bad.peer, other.peer})


async def test_a_member_the_book_has_lost_redeems_its_new_invite_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate is good for days, and an invite often is not."""
    monkeypatch.setattr(enrolment, "EAGER_SECONDS", 0.0)
    mesh = Mesh(tmp_path)
    node = mesh.node("edge", Role.EDGE)
    node.credential.install(mesh.certificate(node.peer, roles=Role.EDGE))
    async with mesh.relay.running(), node.running(), trio.open_nursery() as nursery:
        await mesh.relay.join(mesh.relay, b"")
        at = {mesh.relay.peer: mesh.relay.host.addresses()}
        home = Home(at, await mesh.invite(Role.EDGE), frozenset(at), None, Role.EDGE)
        keeper = Enrolment(home, node.credential, node.members, random.Random(1))
        await keeper.obtain(node.host)
        nursery.start_soon(keeper.run, node.host)
        with trio.fail_after(members.EXCHANGE_SECONDS):
            while node.peer not in {  # noqa: ASYNC110 (the book tells no test)
                one.peer for one in await mesh.authority.members()
            }:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_newcomer_takes_one_certificate_and_not_another_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewal runs from the start, while the first certificate is still asked for."""
    monkeypatch.setattr(enrolment, "EAGER_SECONDS", 0.0)
    mesh = Mesh(tmp_path)
    node = mesh.node("edge", Role.EDGE)
    async with mesh.relay.running(), node.running(), trio.open_nursery() as nursery:
        await mesh.relay.join(mesh.relay, b"")
        at = {mesh.relay.peer: mesh.relay.host.addresses()}
        home = Home(at, await mesh.invite(Role.EDGE), frozenset(at), None, Role.EDGE)
        keeper = Enrolment(home, node.credential, node.members, random.Random(1))
        nursery.start_soon(keeper.run, node.host)
        await trio.testing.wait_all_tasks_blocked()
        await keeper.obtain(node.host)
        await trio.testing.wait_all_tasks_blocked(0.2)
        of_the_relay, taken = mesh.relay.credential.certificate, node.credential.certificate
        assert of_the_relay is not None
        assert taken is not None
        assert taken.serial == of_the_relay.serial + 1
        nursery.cancel_scope.cancel()


async def test_what_the_book_knew_stays_banned_when_it_catches_up(tmp_path: Path) -> None:
    book = SqliteMemberStore(tmp_path / "book.sqlite")
    one, two = PeerId("peer-1"), PeerId("peer-2")
    book.set_ban(one, START_MS, banned=True)
    assert book.catch_up(7, frozenset({two}), START_MS)
    assert not book.catch_up(7, frozenset(), START_MS)
    assert book.bans(START_MS) == (8, {one, two})
    assert book.renew(one, START_MS) is book.renew(two, START_MS) is Refusal.BANNED
