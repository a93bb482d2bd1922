"""What banned peers try to keep, and what members can lose."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from aimo_node.domain.ids import Endpoint, RequestId, Role
from aimo_node.domain.membership import BanList, Refusal
from aimo_node.errors import JoinFailed
from aimo_node.mesh.identity import sign
from aimo_node.mesh.membership.credential import BANS_FILE
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from aimo_node.mesh.membership.members import EXCHANGES_MAX, QUESTIONS_MAX, ask
from aimo_node.ports.peer_network import OutgoingRequest
from aimo_node.protocol.certificates import seal_bans
from aimo_node.protocol.members import PassOn, Refused, Renew
from tests.integration.certified_nodes import DAY_MS, START_MS, Mesh

BAN_SECONDS = 5.0


async def test_a_ban_also_ends_links_that_were_replaced_and_still_serve(tmp_path: Path) -> None:
    """Who links anew during a long answer would else be served to its end."""
    mesh = Mesh(tmp_path)
    provider, bad = mesh.node("provider", Role.PROVIDER), mesh.node("bad", Role.EDGE)

    async def serve(incoming) -> None:
        incoming.accept(b"")
        incoming.send_text("begun ")
        await trio.sleep_forever()

    provider.network._handler = serve
    async with mesh.relay.running(), provider.running(), bad.running():
        await mesh.relay.join(mesh.relay, b"")
        for node in (provider, bad):
            await node.join(mesh.relay, await mesh.invite())
        await provider.connect(mesh.relay)
        await bad.connect(provider)
        old = bad.network._links.pop(provider.peer)
        request = OutgoingRequest(
            RequestId(bytes(16)), Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000
        )
        assert await old.open_exchange(request).receive()
        await bad.connect(provider)
        assert bad.network.link(provider.peer) is not old
        assert not old.closed.is_set()
        await mesh.authority.set_ban(bad.peer, banned=True)
        await mesh.relay.members.tell_bans()
        with trio.fail_after(BAN_SECONDS):
            await old.closed.wait()


async def test_a_member_that_is_too_busy_to_hear_of_a_ban_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers can keep it busy, and the banned one may be among them."""
    monkeypatch.setattr("aimo_node.mesh.membership.members.TELL_AGAIN_SECONDS", (0.1,) * 30)
    mesh = Mesh(tmp_path)
    edge, bad = mesh.node("edge", Role.EDGE), mesh.node("bad", Role.PROVIDER)
    async with mesh.relay.running(), edge.running(), bad.running():
        await mesh.relay.join(mesh.relay, b"")
        for node in (edge, bad):
            await node.join(mesh.relay, await mesh.invite())
        await edge.connect(mesh.relay)
        await edge.connect(bad)
        link = edge.network.link(bad.peer)
        assert link is not None
        edge.members._exchanges["/ip4/192.0.2.1"] = EXCHANGES_MAX
        await mesh.authority.set_ban(bad.peer, banned=True)
        await mesh.relay.members.tell_bans()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not link.closed.is_set()
        del edge.members._exchanges["/ip4/192.0.2.1"]
        with trio.fail_after(BAN_SECONDS):
            await link.closed.wait()


async def test_a_member_that_lost_its_certificate_gets_in_by_its_old_invite(
    tmp_path: Path,
) -> None:
    """The authority forgets invites that have expired, and not who was admitted by them."""
    mesh = Mesh(tmp_path)
    node, stranger = mesh.node("a", Role.EDGE), mesh.node("b", Role.EDGE)
    async with mesh.relay.running(), node.running(), stranger.running():
        await mesh.relay.join(mesh.relay, b"")
        old = await mesh.invite()
        await node.join(mesh.relay, old)
        mesh.clock.ms += 2 * DAY_MS
        await mesh.invite()
        node.credential.certificate = None
        await node.join(mesh.relay, old)
        await mesh.relay.join(mesh.relay, b"")
        await node.connect(mesh.relay)
        with pytest.raises(JoinFailed, match="does not know this invite"):
            await stranger.join(mesh.relay, old)


def test_of_a_list_of_bans_only_what_is_signed_is_kept_and_handed_on(tmp_path: Path) -> None:
    """Else whoever brings it first could have each member carry 60 KB of its own."""
    mesh = Mesh(tmp_path)
    bans = BanList(mesh.key.public_key, 7, frozenset({mesh.relay.peer}))
    sealed = seal_bans(bans, partial(sign, mesh.key))
    padded = msgspec.msgpack.encode([*msgspec.msgpack.decode(sealed), b"x" * 60_000])
    node = mesh.node("a", Role.EDGE)
    assert node.credential.learn_bans(padded)
    assert node.credential.sealed_bans == sealed
    assert (tmp_path / "a" / BANS_FILE).read_bytes() == sealed


async def test_a_relay_that_lies_about_a_ban_keeps_nobody_from_the_authority(
    tmp_path: Path,
) -> None:
    """A refusal is signed by nobody: whoever is asked first could end a membership with it."""
    mesh = Mesh(tmp_path)
    liar, node = mesh.node("liar", Role.RELAY), mesh.node("a", Role.EDGE)

    async def lie(peer, question) -> Refused:
        return Refused(int(Refusal.BANNED), "banned", mesh.clock.ms)

    liar.members._answer = lie
    async with mesh.relay.running(), liar.running(), node.running():
        await mesh.relay.join(mesh.relay, b"")
        at = {one.peer: one.host.addresses() for one in (liar, mesh.relay)}
        home = Home(at, await mesh.invite(), frozenset(at), None, Role.EDGE)
        await Enrolment(home, node.credential, node.members, random.Random(1)).obtain(node.host)
        assert node.credential.problem() is None
        only_liar = replace(home, addresses={liar.peer: at[liar.peer]})
        node.credential.certificate = None
        with pytest.raises(JoinFailed, match="banned"):
            await Enrolment(only_liar, node.credential, node.members, random.Random(1)).obtain(
                node.host
            )


async def test_strangers_at_a_relay_keep_nobody_from_the_authority_behind_it(
    tmp_path: Path,
) -> None:
    """All that a relay passes on comes from its one address; it holds its own askers to theirs."""
    mesh = Mesh(tmp_path)
    relay = mesh.node("relay-2", Role.RELAY)
    async with mesh.relay.running(), relay.running():
        await mesh.relay.join(mesh.relay, b"")
        await relay.join(mesh.relay, await mesh.invite(Role.RELAY))
        await relay.connect(mesh.relay)
        question = PassOn(mesh.node("stranger", Role.EDGE).peer, Renew(START_MS))
        addresses = mesh.relay.host.addresses()
        for _ in range(QUESTIONS_MAX + 8):
            answer = await ask(relay.host, mesh.relay.peer, addresses, question)
            assert isinstance(answer, Refused)
            assert answer.reason == Refusal.NOT_A_MEMBER
