"""Faults of membership in a mesh with an authority: the doctor names the layer and the fix."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from aimo_node.assembly.control_socket import ask_node
from aimo_node.assembly.doctor.admission import Met, judge_meetings
from aimo_node.assembly.doctor.check import Subject
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict
from aimo_node.assembly.doctor.proof import OVERDUE_MS, Papers, Proof, judge_proof
from aimo_node.assembly.node import run_node
from aimo_node.cli.folders import claim_folder
from aimo_node.config.settings import EdgeSettings, MeshSettings
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.join import JoinTarget, format_join, parse_join
from aimo_node.domain.membership import CERTIFICATE_MS, SKEW_MS, Certificate
from aimo_node.mesh.identity import KeyPair, load_identity, read_identity, sign
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.probes.meeting import Meeting, Outcome, Word
from aimo_node.protocol.certificates import seal_certificate
from aimo_node.store.members import SqliteMemberStore
from tests.integration.doctor_cases import (
    LOOPBACK,
    expect,
    findings_of,
    joining,
    provider,
    relay,
    subject,
)

READY_SECONDS = 20.0
DAY_MS = 24 * 3600 * 1000
PEER = KeyPair.from_seed(b"n" * 32).peer_id
RELAY = KeyPair.from_seed(b"r" * 32).peer_id


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Hub:
    """A relay that is the authority of its mesh, and runs."""

    patient: Subject
    state: Path
    join: str

    @property
    def key(self) -> KeyPair:
        return read_identity(self.state / "authority.pem")

    async def invite(self, *roles: str, state: Path | None = None) -> str:
        request = {
            "command": "members.invite", "roles": list(roles), "expires_seconds": 3600, "uses": 1,
        }  # fmt: skip
        answer = await trio.to_thread.run_sync(ask_node, state or self.state, request, 5.0)
        return str(answer["invite"])

    async def ban(self, peer: PeerId) -> None:
        request = {"command": "members.ban", "peer": peer}
        await trio.to_thread.run_sync(ask_node, self.state, request, 5.0)

    def certify(self, state: Path, roles: Role, *, ago_ms: int = 0) -> PeerId:
        """Put a certificate into a state folder, as if that node had joined some time ago."""
        peer = load_identity(state / "identity.pem").peer_id
        issued = now_ms() - ago_ms
        certificate = Certificate(
            self.key.public_key, peer, roles, 1, issued, issued + CERTIFICATE_MS
        )
        sealed = seal_certificate(certificate, partial(sign, self.key))
        (state / "certificate").write_bytes(sealed)
        return peer


@contextlib.asynccontextmanager
async def running(patient: Subject, roles: Role) -> AsyncIterator[str]:
    """A node as the command line runs it; its join string."""
    settings = patient.load().settings.for_roles(roles)
    stop, ready = trio.Event(), trio.Event()
    joins: list[str] = []

    def on_ready(line) -> None:
        joins.append(line.join or "")
        ready.set()

    with claim_folder(settings.node.state):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_node, settings, roles, stop=stop, on_ready=on_ready))
            with trio.fail_after(READY_SECONDS):
                await ready.wait()
            yield joins[0]
            stop.set()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    state = tmp_path / "hub"
    mesh = MeshSettings(listen=(LOOPBACK,), authority=True)
    patient = subject(state, mesh=mesh, edge=EdgeSettings(http="off"))
    async with running(patient, Role.RELAY) as join:
        yield Hub(patient, state, join)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    folder.mkdir()
    return folder


def edge(state: Path, *joins: str, faults=None, **more) -> Subject:
    mesh = MeshSettings(join=joins, listen=(LOOPBACK,), **more)
    return subject(state, mesh=mesh, roles=Role.EDGE, faults=faults)


def told(findings: list[Finding], check: str) -> list[Finding]:
    return [one for one in findings if one.check == check]


def all_well(findings: list[Finding]) -> bool:
    return {one.verdict for one in findings} <= {Verdict.OK, Verdict.SKIPPED}


async def test_a_mesh_with_an_authority_is_all_right(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The authority itself, a newcomer, a member that runs and one that does not."""
    assert all_well(await findings_of(hub.patient))
    without_flags = subject(hub.state, edge=EdgeSettings(http="off"))
    assert all_well(await findings_of(without_flags))
    engine = {"provider": provider("echo", model="echo"), "edge": EdgeSettings(http="off")}
    mesh = MeshSettings(join=(await hub.invite("provider"),), listen=(LOOPBACK,))
    member = subject(tmp_path / "node", mesh=mesh, **engine)
    findings = await findings_of(member)
    assert all_well(findings), findings
    assert "redeemed at the first start" in told(findings, "proof")[0].seen
    assert "answers for the authority" in told(findings, "membership")[1].seen
    async with running(member, Role.PROVIDER):
        capsys.readouterr()
        findings = await findings_of(subject(tmp_path / "node", edge=EdgeSettings(http="off")))
        assert all_well(findings), findings
        assert "good for 6 d" in told(findings, "proof")[0].seen
        assert "is linked to" in told(findings, "membership")[0].seen
        assert "what the authority" in told(findings, "clock")[0].seen
        assert "link.opened" not in capsys.readouterr().out, "the doctor took its place"
    findings = await findings_of(member)
    assert all_well(findings), findings
    assert "lets this node in" in told(findings, "membership")[0].seen


async def test_a_banned_node_is_named(hub: Hub, state: Path) -> None:
    peer = hub.certify(state, Role.EDGE)
    await hub.ban(peer)
    found = await expect(
        edge(state, hub.join), Layer.MEMBERSHIP, "the mesh has banned this node", "aimo peers allow"
    )
    assert peer in found.do


async def test_a_certificate_for_another_role_is_named(hub: Hub, state: Path) -> None:
    hub.certify(state, Role.PROVIDER)
    patient = edge(state, hub.join)
    await expect(patient, Layer.MEMBERSHIP, "is for provider, this node is edge", "--role edge")


async def test_neither_certificate_nor_invite_is_named(hub: Hub, state: Path) -> None:
    await expect(edge(state, hub.join), Layer.MEMBERSHIP, "neither", "aimo invite --role edge")


async def test_an_invite_for_another_role_is_named(hub: Hub, state: Path) -> None:
    patient = edge(state, await hub.invite("provider"))
    await expect(patient, Layer.MEMBERSHIP, "invite is for provider", "--role edge")


async def test_an_invite_that_expired_is_named(hub: Hub, state: Path) -> None:
    later = {"now": lambda: now_ms() / 1000 + 7200}
    patient = edge(state, await hub.invite("edge"), faults=later)
    bad = [one for one in await findings_of(patient) if one.verdict is Verdict.PROBLEM]
    assert [one.check for one in bad] == ["proof"], "nobody can tell the clock before that"
    assert "the invite expired 60 min ago" in bad[0].seen


async def test_an_invite_that_somebody_else_signed_is_named(hub: Hub, state: Path) -> None:
    target = parse_join(await hub.invite("edge"))
    other = Authority(
        KeyPair.from_seed(b"o" * 32), SqliteMemberStore(state / "other.sqlite"), now_ms
    )
    forged = JoinTarget(target.addresses, None, target.mesh, await other.invite(Role.EDGE, 1000, 1))
    patient = edge(state, format_join(forged))
    await expect(patient, Layer.MEMBERSHIP, "did not sign", "copy the whole string")


async def test_join_strings_of_two_meshes_are_named(hub: Hub, state: Path) -> None:
    other = parse_join(hub.join)
    second = format_join(JoinTarget(other.addresses, None, b"m" * 32))
    await expect(edge(state, hub.join, second), Layer.MEMBERSHIP, "different", "one mesh")


async def test_an_invite_to_a_mesh_with_a_secret_is_named(hub: Hub, state: Path) -> None:
    """The relay at that address has been made anew, without --authority."""
    hub.certify(state, Role.EDGE)
    async with relay() as address:
        mesh = parse_join(hub.join).mesh
        patient = edge(state, format_join(JoinTarget((address,), None, mesh)))
        await expect(patient, Layer.MEMBERSHIP, "has a secret", "join string")


async def test_a_secret_for_a_mesh_with_an_authority_is_named(hub: Hub, state: Path) -> None:
    address = parse_join(hub.join).addresses[0]
    patient = subject(state, mesh=joining(address), roles=Role.EDGE)
    await expect(patient, Layer.MEMBERSHIP, "admits by invite", "aimo invite")


async def test_an_authority_that_is_away_is_named(hub: Hub, tmp_path: Path, state: Path) -> None:
    """A relay of the mesh answers, but has no link to it: newcomers have to wait."""
    second = tmp_path / "second"
    second.mkdir()
    hub.certify(second, Role.RELAY)
    nowhere = format_join(
        JoinTarget((f"/ip4/127.0.0.1/tcp/9/p2p/{RELAY}",), None, parse_join(hub.join).mesh)
    )
    settings = MeshSettings(join=(nowhere, hub.join), listen=(LOOPBACK,))
    patient = subject(second, mesh=settings, edge=EdgeSettings(http="off"))
    async with running(patient, Role.RELAY) as join:
        target, invite = parse_join(join), parse_join(await hub.invite("edge"))
        through = format_join(JoinTarget(target.addresses, None, target.mesh, invite.invite))
        assert all_well(await findings_of(edge(state, through))), "it passes questions on"
        await hub.ban(load_identity(second / "identity.pem").peer_id)
        await expect(edge(state, through), Layer.MEMBERSHIP, "cannot join now", "start the auth")


@pytest.mark.parametrize(("ahead", "word"), [(95, "95 s ahead of"), (-95, "95 s behind")])
async def test_a_clock_is_compared_with_the_authoritys(
    hub: Hub, state: Path, ahead: float, word: str
) -> None:
    """Without an upstream, and to the second; more than half a minute is too much."""
    hub.certify(state, Role.EDGE, ago_ms=DAY_MS)
    for off, is_wrong in ((ahead, True), (ahead / 95 * 29, False)):
        faults = {"now": lambda off=off: now_ms() / 1000 + off}
        patient = edge(state, hub.join, faults=faults)
        if is_wrong:
            await expect(patient, Layer.CLOCK, word, "NTP")
        else:
            assert all_well(await findings_of(patient))


async def test_an_authoritys_key_that_others_may_read_is_named(tmp_path: Path) -> None:
    key = tmp_path / "authority.pem"
    load_identity(key)
    key.chmod(0o644)
    mesh = MeshSettings(listen=(LOOPBACK,), authority=True)
    patient = subject(tmp_path, mesh=mesh, roles=Role.RELAY, edge=EdgeSettings(http="off"))
    await expect(patient, Layer.MEMBERSHIP, "open to other users", f"chmod 600 {key}")


async def test_an_authoritys_book_that_is_damaged_is_named(tmp_path: Path) -> None:
    load_identity(tmp_path / "authority.pem")
    (tmp_path / "members.sqlite").write_bytes(os.urandom(4096))
    mesh = MeshSettings(listen=(LOOPBACK,), authority=True)
    patient = subject(tmp_path, mesh=mesh, roles=Role.RELAY, edge=EdgeSettings(http="off"))
    await expect(patient, Layer.MEMBERSHIP, "not a database", "backup")


async def test_an_authority_that_was_forgotten_is_named(tmp_path: Path) -> None:
    load_identity(tmp_path / "authority.pem")
    patient = subject(tmp_path, roles=Role.RELAY, edge=EdgeSettings(http="off"))
    await expect(patient, Layer.MEMBERSHIP, "start this node with --authority", "as the message")


def papers(**changes: object) -> Papers:
    now = 1_800_000_000_000
    fields: dict[str, object] = {
        "mesh": b"m" * 32,
        "roles": Role.EDGE,
        "peer": PEER,
        "certificate": Certificate(b"m" * 32, PEER, Role.EDGE, 1, now, now + CERTIFICATE_MS),
        "invite": None,
        "invite_error": "",
        "is_banned": False,
        "is_running": True,
        "is_authority": False,
        "now_ms": now,
    }
    return Papers(**(fields | changes))  # type: ignore[arg-type]


START_MS = papers().now_ms
ENDED_MS = START_MS + CERTIFICATE_MS + 3 * DAY_MS


@pytest.mark.parametrize(
    ("seen", "verdict", "layer", "said"),
    [
        (papers(), Verdict.OK, Layer.MEMBERSHIP, "good for 7 d"),
        (papers(is_banned=True), Verdict.PROBLEM, Layer.MEMBERSHIP, "has banned this node"),
        (papers(now_ms=ENDED_MS), Verdict.PROBLEM, Layer.MEMBERSHIP, "expired 3 d ago, and"),
        (
            papers(now_ms=ENDED_MS, is_running=False),
            Verdict.WARNING,
            Layer.MEMBERSHIP,
            "expired 3 d ago",
        ),
        (
            papers(now_ms=START_MS + CERTIFICATE_MS // 2 + 5 * OVERDUE_MS),
            Verdict.WARNING,
            Layer.MEMBERSHIP,
            "wants renewal for 5 h, and ends in 3 d",
        ),
        (
            papers(now_ms=START_MS - SKEW_MS - 1000),
            Verdict.PROBLEM,
            Layer.CLOCK,
            "begins 31 s in the future",
        ),
        (papers(now_ms=START_MS - SKEW_MS), Verdict.OK, Layer.MEMBERSHIP, "good for 7 d"),
    ],
)
def test_what_a_certificate_is_worth_is_told(
    seen: Papers, verdict: Verdict, layer: Layer, said: str
) -> None:
    (found,) = judge_proof(Proof(papers=seen))
    assert (found.verdict, found.layer) == (verdict, layer)
    assert said in found.seen
    assert bool(found.do) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("said", "seen", "layer", "do"),
    [
        ("the certificate expired 9 min ago", papers(), Layer.CLOCK, "NTP"),
        ("the certificate begins 95 s in the future", papers(), Layer.CLOCK, f"clock of {RELAY}"),
        ("the certificate is of another mesh", papers(), Layer.MEMBERSHIP, "new invite"),
        (
            "the certificate expired 3 d ago",
            papers(now_ms=ENDED_MS),
            Layer.MEMBERSHIP,
            "aimo peers list",
        ),
    ],
)
def test_what_a_running_node_was_refused_for_is_named(
    said: str, seen: Papers, layer: Layer, do: str
) -> None:
    """The doctor shows nothing then: it would take the node's place."""
    meeting = Meeting(RELAY, Outcome.ASKED, word=Word(has_authority=True, ahead_seconds=0.0))
    (found,) = judge_meetings(Met([meeting], {RELAY: f"peer {RELAY}: {said}"}, papers=seen))
    assert (found.verdict, found.layer) == (Verdict.PROBLEM, layer)
    assert said in found.seen
    assert do in found.do


async def test_looking_redeems_and_changes_nothing(hub: Hub, state: Path) -> None:
    before: Callable[[], list[tuple[str, int]]] = lambda: sorted(  # noqa: E731 (asked twice)
        (path.name, path.stat().st_mtime_ns) for path in state.iterdir()
    )
    hub.certify(state, Role.EDGE)
    files, invite = before(), await hub.invite("provider")
    mesh = MeshSettings(join=(invite,), listen=(LOOPBACK,))
    both = subject(state, mesh=mesh, roles=Role.EDGE)
    assert all_well(await findings_of(both))
    assert before() == files
    request = {"command": "members.list"}
    listed = await trio.to_thread.run_sync(ask_node, hub.state, request, 5.0)
    assert len(listed["members"]) == 1, "the authority's own node"
