"""A mesh with an authority over real links: who gets in, what they may do, how a ban works.

All nodes live in this process; the clock that certificates are judged by is the test's own.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from aimo_node.domain.ids import Endpoint, ModelName, RequestId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, SKEW_MS, BanList, Certificate, Refusal
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import (
    AimoError,
    CloseCode,
    JoinFailed,
    NetworkError,
    PermissionDenied,
)
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from aimo_node.mesh.membership.members import ask
from aimo_node.ports.peer_network import OutgoingRequest
from aimo_node.protocol import frames
from aimo_node.protocol.certificates import seal_bans, seal_certificate
from aimo_node.protocol.descriptors import describe
from aimo_node.protocol.members import Bans, Granted, Redeem, Refused, Renew, Taken
from aimo_node.protocol.signing import descriptor_bytes_to_sign
from aimo_node.store.members import SqliteMemberStore
from tests.integration.certified_nodes import DAY_MS, START_MS, Clock, Mesh, Node

BAN_SECONDS = 5.0


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    async with made.relay.running():
        await made.relay.join(made.relay, b"")
        yield made


async def until(condition: Callable[[], bool], seconds: float = BAN_SECONDS) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 (the mesh tells no test)
            await trio.sleep(0.01)


async def refusal_of(node: Node, at: Node) -> str:
    with pytest.raises((PermissionDenied, NetworkError)) as refused:
        await node.connect(at)
    assert at.network.link(node.peer) is None
    return str(refused.value)


async def test_an_invite_makes_a_member_that_others_admit(mesh: Mesh) -> None:
    provider, edge = mesh.node("p", Role.PROVIDER), mesh.node("e", Role.EDGE)
    async with provider.running(), edge.running():
        await provider.join(mesh.relay, await mesh.invite(Role.PROVIDER))
        await edge.join(mesh.relay, await mesh.invite(Role.EDGE))
        await provider.connect(mesh.relay)
        await edge.connect(provider)  # they have never met, and the authority is not asked
        listed = {one.peer: one.roles for one in await mesh.authority.members()}
        assert listed == {
            mesh.relay.peer: Role.RELAY,
            provider.peer: Role.PROVIDER,
            edge.peer: Role.EDGE,
        }


async def test_a_certificate_is_kept_and_no_second_invite_is_needed(mesh: Mesh) -> None:
    first = mesh.node("p", Role.PROVIDER)
    async with first.running():
        await first.join(mesh.relay, await mesh.invite())
    assert (mesh.folder / "p" / "certificate").stat().st_mode & 0o777 == 0o600
    again = mesh.node("p", Role.PROVIDER)
    async with again.running():
        assert again.credential.problem() is None
        await again.connect(mesh.relay)


HOSTILE: dict[str, tuple[Callable[[Mesh, Node], bytes], str]] = {
    "no certificate": (lambda mesh, node: b"", "malformed"),
    "rubbish": (lambda mesh, node: b"\xc1" * 200, "malformed"),
    "another peer's": (
        lambda mesh, node: mesh.certificate(mesh.relay.peer),
        "another peer's",
    ),
    "another mesh's": (
        lambda mesh, node: mesh.certificate(node.peer, mesh=b"m" * 32),
        "another mesh",
    ),
    "expired": (
        lambda mesh, node: mesh.certificate(node.peer, expires_ms=START_MS - SKEW_MS - 1),
        "expired",
    ),
    "of the future": (
        lambda mesh, node: mesh.certificate(node.peer, issued_ms=START_MS + SKEW_MS + 1),
        "clock",
    ),
    "without the role": (
        lambda mesh, node: mesh.certificate(node.peer, roles=Role.EDGE),
        "not for the role provider",
    ),
    "forged": (
        lambda mesh, node: seal_certificate(
            Certificate(
                mesh.key.public_key, node.peer, Role.PROVIDER, 1, START_MS, START_MS + DAY_MS
            ),
            partial(sign, node.identity),
        ),
        "did not sign",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_who_shows_something_else_gets_no_link(mesh: Mesh, kind: str) -> None:
    """And so can neither provide, consume nor subscribe."""
    make, said = HOSTILE[kind]
    hostile = mesh.node("hostile", Role.PROVIDER)
    hostile.credential._sealed = make(mesh, hostile)
    async with hostile.running():
        assert said in await refusal_of(hostile, mesh.relay)


async def test_a_good_certificate_does_as_the_hostile_ones_do_not(mesh: Mesh) -> None:
    """What the tests before change is what makes the difference."""
    node = mesh.node("honest", Role.PROVIDER)
    node.credential._sealed = mesh.certificate(node.peer)
    async with node.running():
        await node.connect(mesh.relay)


async def test_a_peer_of_a_mesh_with_a_secret_is_in_another_mesh(mesh: Mesh) -> None:
    stranger = mesh.node("stranger", Role.EDGE)
    stranger.credential.mesh = b"m" * 16
    async with stranger.running():
        assert "another mesh" in await refusal_of(stranger, mesh.relay)


def outgoing() -> OutgoingRequest:
    return OutgoingRequest(
        RequestId(os.urandom(16)), Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000
    )


async def test_a_member_that_is_no_edge_cannot_consume(mesh: Mesh) -> None:
    provider, other = mesh.node("p", Role.PROVIDER), mesh.node("o", Role.PROVIDER)
    async with provider.running(), other.running():
        await provider.join(mesh.relay, await mesh.invite(Role.PROVIDER))
        await other.join(mesh.relay, await mesh.invite(Role.PROVIDER))
        await other.connect(provider)
        exchange = await other.network.open_exchange(provider.peer, outgoing())
        with pytest.raises(PermissionDenied, match="role edge"), trio.fail_after(5):
            await exchange.receive()


async def test_a_member_that_is_no_provider_cannot_provide_and_no_edge_not_subscribe(
    mesh: Mesh,
) -> None:
    """It may say so, but is not heard; the link lives on."""
    edge, provider = mesh.node("e", Role.EDGE), mesh.node("p", Role.PROVIDER)
    async with edge.running(), provider.running():
        for node in (edge, provider):
            await node.join(mesh.relay, await mesh.invite(node.roles))
            await node.connect(mesh.relay)
            body = describe(
                Descriptor(
                    node.peer,
                    incarnation=1,
                    models=(ModelInfo(ModelName("m"), endpoints=(Endpoint.CHAT,)),),
                    engine_state=EngineState.RUNNING,
                )
            )
            signature = sign(node.identity, descriptor_bytes_to_sign(body))
            link = node.network.link(mesh.relay.peer)
            assert link is not None
            link.announce(frames.Descriptor(body, signature))
            link.announce(frames.Heartbeat(node.peer, 1, 1, 0, 0, 0, 0, 0))
            link.announce(frames.Directory(full=True))
            link.announce(frames.Subscribe())
        await until(lambda: len(mesh.relay.heard.frames) >= 3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        kinds = sorted(type(frame).__name__ for frame in mesh.relay.heard.frames)
        assert kinds == ["Descriptor", "Heartbeat", "Subscribe"]
        said_by = [one.node_id for one in mesh.relay.heard.frames if hasattr(one, "node_id")]
        assert said_by == [provider.peer]


async def test_of_many_nodes_with_one_invite_one_gets_in(mesh: Mesh) -> None:
    invite = await mesh.invite()
    nodes = [mesh.node(f"n{number}", Role.EDGE) for number in range(8)]
    answers: list[object] = []

    async def redeem(node: Node) -> None:
        async with node.host:
            relay = mesh.relay
            question = Redeem(invite, START_MS)
            answers.append(await ask(node.host, relay.peer, relay.host.addresses(), question))

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(redeem, node)
    assert sum(isinstance(one, Granted) for one in answers) == 1
    refused = [one.reason for one in answers if isinstance(one, Refused)]
    assert refused == [Refusal.INVITE_USED] * 7


async def test_a_replayed_invite_is_refused_with_its_reason_at_once(mesh: Mesh) -> None:
    invite = await mesh.invite()
    first, second = mesh.node("a", Role.EDGE), mesh.node("b", Role.EDGE)
    async with first.running(), second.running():
        await first.join(mesh.relay, invite)
        with pytest.raises(JoinFailed, match="used up"), trio.fail_after(5):
            await second.join(mesh.relay, invite)


async def test_a_forged_invite_is_refused(mesh: Mesh) -> None:
    forger = Authority(
        KeyPair.from_seed(b"f" * 32), SqliteMemberStore(mesh.folder / "f.sqlite"), mesh.clock
    )
    node = mesh.node("a", Role.EDGE)
    async with node.running():
        with pytest.raises(JoinFailed, match="did not sign"):
            await node.join(mesh.relay, await forger.invite(Role.EDGE, DAY_MS, 1))


async def test_a_node_whose_clock_is_off_is_told_and_the_invite_stays_good(mesh: Mesh) -> None:
    invite = await mesh.invite()
    node = mesh.node("a", Role.EDGE)
    node.clock = Clock()
    async with node.running():
        node.clock.ms = mesh.clock.ms - 90_000
        with pytest.raises(JoinFailed, match="clock is 90 s behind the authority's: set it"):
            await node.join(mesh.relay, invite)
        node.clock.ms = mesh.clock.ms - SKEW_MS
        await node.join(mesh.relay, invite)
        await node.connect(mesh.relay)


async def test_a_ban_ends_links_everywhere_and_nothing_opens_again(mesh: Mesh) -> None:
    """Also at members that only hear of it, and after their restart."""
    bad, edge = mesh.node("bad", Role.PROVIDER), mesh.node("edge", Role.EDGE)
    async with bad.running():
        async with edge.running():
            for node in (bad, edge):
                await node.join(mesh.relay, await mesh.invite())
                await node.connect(mesh.relay)
            await edge.connect(bad)
            at_edge = edge.network.link(bad.peer)
            assert at_edge is not None
            assert await mesh.authority.set_ban(bad.peer, banned=True)
            await mesh.relay.members.tell_bans()
            with trio.fail_after(BAN_SECONDS):
                await at_edge.closed.wait()
            assert at_edge.close_code is CloseCode.NotAdmitted
            assert mesh.relay.network.link(bad.peer) is None
            assert edge.network.link(mesh.relay.peer) is not None
            assert "banned" in await refusal_of(bad, mesh.relay)
            assert "banned" in await refusal_of(bad, edge)
            addresses = mesh.relay.host.addresses()
            answer = await ask(bad.host, mesh.relay.peer, addresses, Renew(START_MS))
            assert isinstance(answer, Refused)
            assert answer.reason == Refusal.BANNED
        again = mesh.node("edge", Role.EDGE)
        assert again.credential.bans.peers == {bad.peer}
        async with again.running():
            assert "banned" in await refusal_of(bad, again)


async def test_a_ban_that_is_lifted_lets_in_again(mesh: Mesh) -> None:
    node = mesh.node("a", Role.EDGE)
    async with node.running():
        await node.join(mesh.relay, await mesh.invite())
        for banned in (True, False):
            await mesh.authority.set_ban(node.peer, banned=banned)
            await mesh.relay.members.tell_bans()
        await node.connect(mesh.relay)


async def test_who_was_away_hears_of_a_ban_when_it_comes_back(mesh: Mesh) -> None:
    bad, edge = mesh.node("bad", Role.PROVIDER), mesh.node("edge", Role.EDGE)
    async with bad.running(), edge.running():
        for node in (bad, edge):
            await node.join(mesh.relay, await mesh.invite())
        await edge.connect(bad)
        await mesh.authority.set_ban(bad.peer, banned=True)
        await mesh.relay.members.tell_bans()
        assert edge.network.link(bad.peer) is not None
        await edge.connect(mesh.relay)
        await until(lambda: edge.network.link(bad.peer) is None)


async def test_bans_that_the_authority_did_not_sign_are_ignored(mesh: Mesh) -> None:
    victim, liar = mesh.node("victim", Role.EDGE), mesh.node("liar", Role.EDGE)
    async with victim.running(), liar.running():
        for node in (victim, liar):
            await node.join(mesh.relay, await mesh.invite())
        await victim.connect(mesh.relay)
        bans = BanList(mesh.key.public_key, 99, frozenset({victim.peer}))
        forged = Bans(seal_bans(bans, partial(sign, liar.identity)))
        with pytest.raises(NetworkError):
            await ask(liar.host, mesh.relay.peer, mesh.relay.host.addresses(), forged)
        assert mesh.relay.network.link(victim.peer) is not None
        assert mesh.relay.credential.bans.version == 0
        old = Bans(await mesh.authority.bans())
        answer = await ask(liar.host, mesh.relay.peer, mesh.relay.host.addresses(), old)
        assert isinstance(answer, Taken)


async def test_a_member_that_is_no_authority_gives_no_certificates(mesh: Mesh) -> None:
    member, other = mesh.node("m", Role.EDGE), mesh.node("o", Role.EDGE)
    async with member.running(), other.running():
        await member.join(mesh.relay, await mesh.invite())
        question = Redeem(await mesh.invite(), START_MS)
        answer = await ask(other.host, member.peer, member.host.addresses(), question)
        assert isinstance(answer, Refused)
        assert answer.reason == Refusal.NOT_AUTHORITY


async def test_members_go_on_without_the_authority_until_a_certificate_ends(
    tmp_path: Path,
) -> None:
    mesh = Mesh(tmp_path)
    one, two = mesh.node("1", Role.PROVIDER), mesh.node("2", Role.EDGE)
    async with one.running(), two.running():
        async with mesh.relay.running():
            await mesh.relay.join(mesh.relay, b"")
            for node in (one, two):
                await node.join(mesh.relay, await mesh.invite())
        mesh.clock.ms += CERTIFICATE_MS
        await two.connect(one)
        link = two.network.link(one.peer)
        assert link is not None
        mesh.clock.ms += SKEW_MS + 1
        with trio.fail_after(2 * BAN_SECONDS):
            await link.closed.wait()
        assert "expired" in await refusal_of(two, one)


async def test_a_certificate_is_renewed_when_half_of_it_is_over(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def look() -> int:
        nonlocal looked
        looked += 1
        return mesh.clock.ms

    monkeypatch.setattr("aimo_node.mesh.membership.enrolment.RENEW_SECONDS", 0.01)
    node = mesh.node("a", Role.EDGE)
    async with node.running():
        at = {mesh.relay.peer: mesh.relay.host.addresses()}
        home = Home(at, await mesh.invite(), frozenset(at), None, Role.EDGE)
        enrolment = Enrolment(home, node.credential, node.members, random.Random(1))
        await enrolment.obtain(node.host)
        first = node.credential.certificate
        assert first is not None
        async with trio.open_nursery() as nursery:
            node.credential._clock_ms = look
            nursery.start_soon(enrolment.run, node.host)
            await until(lambda: looked > 10)
            assert node.credential.certificate is first
            mesh.clock.ms += CERTIFICATE_MS // 2
            await until(lambda: node.credential.certificate is not first)
            nursery.cancel_scope.cancel()
        renewed = node.credential.certificate
        assert renewed is not None
        assert renewed.serial > first.serial
        assert renewed.expires_ms == mesh.clock.ms + CERTIFICATE_MS


async def test_joining_without_the_authority_says_why(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    mesh = Mesh(tmp_path)
    node = mesh.node("a", Role.EDGE)
    nobody = {mesh.relay.peer: ["/ip4/127.0.0.1/tcp/9"]}
    home = Home(nobody, await mesh.invite(), frozenset(nobody), None, Role.EDGE)
    enrolment = Enrolment(home, node.credential, node.members, random.Random(1))

    class Unreachable:
        async def dial(self, peer, addresses, *, protocol=None):
            raise NetworkError("nobody listens there")

    with pytest.raises(JoinFailed, match=r"nobody listens there.*authority.*must answer"):
        await enrolment.obtain(Unreachable())
    node.credential.install(mesh.certificate(node.peer))
    mesh.clock.ms += 2 * CERTIFICATE_MS
    with pytest.raises(JoinFailed, match=r"expired 7 d ago, and 12D3\w+: nobody listens"):
        await enrolment.obtain(Unreachable())


async def test_who_asks_too_often_is_told_to_come_again(mesh: Mesh) -> None:
    node = mesh.node("a", Role.EDGE)
    answers: list[object] = []
    async with node.host:
        addresses = mesh.relay.host.addresses()
        for _ in range(80):
            try:
                answers.append(await ask(node.host, mesh.relay.peer, addresses, Renew(START_MS)))
            except AimoError:
                break
    reasons = [one.reason for one in answers if isinstance(one, Refused)]
    assert Refusal.BUSY in reasons
    assert reasons.count(Refusal.NOT_A_MEMBER) >= 60
