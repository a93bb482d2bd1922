"""Checks of membership: is there a secret to show, and does each relay let this node in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aimo_node import __version__
from aimo_node.assembly.certified import CERTIFIED_FILES, clock_ms, mesh_of_state
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict, ok, problem, skipped
from aimo_node.assembly.doctor.folder import IDENTITY
from aimo_node.assembly.doctor.names import DNS
from aimo_node.assembly.doctor.program import CONFIGURATION, VERSIONS
from aimo_node.assembly.doctor.reach import REACH, Answer
from aimo_node.assembly.doctor.running_node import NODE
from aimo_node.assembly.membership import SECRET_FILE, has_authority, mesh_secret
from aimo_node.config.settings import Settings
from aimo_node.domain.ids import Role
from aimo_node.domain.join import JoinTarget
from aimo_node.errors import ConfigError
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.membership.secret import read_secret
from aimo_node.mesh.probes.meeting import Meeting, Outcome
from aimo_node.protocol import limits
from aimo_node.protocol.handshake import Admission, Doorkeeper

MEET_SECONDS: Final = 6.5
"""Dial, Hello and Identify, each at its limit, and a goodbye."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What this node has to prove that it belongs.

    Attributes:
        value: None for an open mesh, or while there is none yet.
        error: why there is none; names the fix.
        is_known: the doctor has it, or knows that there is none; else only the running node does.
        mesh: the mesh of the certificate that is here.
    """

    value: bytes | None = None
    said: str = ""
    error: str = ""
    is_known: bool = True
    mesh: bytes | None = None


_DECIDES: Final = "this node is the authority of its mesh: it decides who is a member"


async def _find_secret(case: Case) -> Secret:
    seen = case.seen(CONFIGURATION)
    mesh = seen.usable.mesh
    node = case.glimpse(NODE)
    if node is not None and node.relays and not seen.targets and mesh.secret_file is None:
        return Secret(None, "the running node has what it needs", is_known=False)
    try:
        if has_authority(seen.usable, seen.targets):
            return _certificate(seen.usable, seen.targets)
        return _mesh_secret(seen.usable, seen.targets)
    except PermissionError:
        return Secret(None, "whether there is one is not for this user to see", is_known=False)
    except ConfigError as error:
        return Secret(error=str(error))


def _mesh_secret(settings: Settings, targets: Sequence[JoinTarget]) -> Secret:
    state, mesh = settings.node.state, settings.mesh
    if targets or mesh.secret_file is not None or mesh.open:
        value = mesh_secret(settings, targets)
    elif (state / SECRET_FILE).exists():
        value = read_secret(state / SECRET_FILE)
    elif (state / CERTIFIED_FILES["key"]).exists():
        return Secret(None, _DECIDES, is_known=False)
    else:
        return Secret(None, "a secret of its own is made at the first start")
    return Secret(value, "the mesh is closed, the secret is here" if value else "the mesh is open")


def _certificate(settings: Settings, targets: Sequence[JoinTarget]) -> Secret:
    """What stands in for the secret in a mesh with an authority."""
    kept = mesh_of_state(settings.node.state)
    if settings.mesh.authority:
        return Secret(None, _DECIDES, is_known=False)
    if kept is not None and all(target.mesh in {kept, None} for target in targets):
        said = "the mesh has an authority, and this node's certificate is here"
        return Secret(None, said, is_known=False, mesh=kept)
    if any(target.invite for target in targets):
        said = "the mesh has an authority: the invite is redeemed at the first start"
        return Secret(None, said, is_known=False)
    return Secret(error="the mesh has an authority, and here is neither certificate nor invite")


def judge_secret(seen: Secret) -> list[Finding]:
    """The message of whoever refused it names the flag."""
    if seen.error:
        do = (
            "use the whole join string of the relay, or --mesh-secret-file with mode 0600; in a"
            " mesh with an authority what its owner gets from: aimo invite"
        )
        return [problem(Layer.MEMBERSHIP, seen.error, do)]
    return [ok(Layer.MEMBERSHIP, seen.said)]


SECRET: Final = Check(
    "secret",
    Layer.MEMBERSHIP,
    _find_secret,
    judge_secret,
    needs=(CONFIGURATION,),
    follows=(NODE,),
)


@dataclass(frozen=True, slots=True)
class Met:
    """What came of meeting the relays.

    Attributes:
        by_node: what the running node says of its links, see `NodeSeen.relays`.
        secret_known: the doctor showed the secret that the node would show.
        is_newcomer: there is an invite only, which is not for the doctor to redeem.
    """

    meetings: Sequence[Meeting]
    by_node: Mapping[str, str] = field(default_factory=dict)
    secret_known: bool = True
    is_newcomer: bool = False


async def _meet(case: Case) -> Met:
    from aimo_node.mesh.probes.probing import meet_relays  # noqa: PLC0415 (loads libp2p)

    answering = {reply.peer for reply in case.seen(REACH) if reply.answer is Answer.LIBP2P}
    places = case.seen(DNS)
    relays = {
        peer: [place.text for place in places.of(peer) if place.ends]
        for peer in places.peers
        if peer in answering
    }
    node = case.glimpse(NODE)
    by_node = node.relays if node is not None else {}
    if not relays:
        return Met((), by_node)
    identity, secret = _whom_to_be(case), case.seen(SECRET)
    settings = case.seen(CONFIGURATION)
    is_certified = has_authority(settings.usable, settings.targets)
    if is_certified and secret.mesh is None and (node is None or node.holder is None):
        return Met((), by_node, is_newcomer=True)
    doorkeeper = _doorkeeper(identity, secret, settings.usable.node.state)
    meetings = await meet_relays(identity, doorkeeper, relays)
    return Met(meetings, by_node, secret.is_known)


def _doorkeeper(identity: KeyPair, secret: Secret, state: Path) -> Doorkeeper:
    agent = f"aimo-doctor/{__version__}"
    if secret.mesh is None:
        return Admission(identity.peer_id, secret.value, Role.NONE, agent=agent)
    credential = Credential(secret.mesh, identity.peer_id, Role.NONE, state, clock_ms=clock_ms)
    credential.agent = agent
    return credential


def _whom_to_be(case: Case) -> KeyPair:
    """The node's own identity; not while it runs, since a relay keeps one link per peer."""
    node, identity = case.glimpse(NODE), case.glimpse(IDENTITY)
    is_free = node is not None and node.holder is None
    if is_free and identity is not None and identity.key is not None:
        return identity.key
    return KeyPair.from_seed(os.urandom(32))


_SAME: Final = "use the join string that this relay prints (or --mesh-secret-file with its secret)"
_BROKEN: Final = (
    Layer.RELAY,
    Verdict.PROBLEM,
    "{peer} takes connections, but the link breaks off: {said}",
    "see whether that is an aimo relay at all, and what its log says; it may be overloaded",
)
_REFUSALS: Final = {
    Outcome.UNREACHED: _BROKEN,
    Outcome.SILENT: _BROKEN,
    Outcome.BROKEN: _BROKEN,
    Outcome.STRANGER: (
        Layer.RELAY,
        Verdict.PROBLEM,
        "at the addresses of {peer} another node answers",
        "the relay has a new identity (was its state lost?): use its new join string",
    ),
    Outcome.GOING_AWAY: (
        Layer.RELAY,
        Verdict.WARNING,
        "{peer} is going away",
        "the relay is being stopped: wait for its restart, or join another one as well",
    ),
    Outcome.OTHER_VERSION: (
        Layer.VERSION,
        Verdict.PROBLEM,
        "{peer} ({agent}) speaks versions {theirs} of the wire, this aimo {ours}",
        "bring both to the same release of aimo",
    ),
    Outcome.MESH_IS_OPEN: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "the mesh of {peer} is open, this node comes with a secret",
        "give --open here and leave out the secret; or close the mesh",
    ),
    Outcome.MESH_IS_CLOSED: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "the mesh of {peer} is closed: it wants a secret",
        _SAME,
    ),
    Outcome.OTHER_MESH: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "{peer} is in another mesh: the secrets differ",
        _SAME,
    ),
    Outcome.NOT_ADMITTED: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "{peer} does not admit this node: {said}",
        _SAME,
    ),
}
"""Layer, verdict, what was seen and what to do, for every way in which a relay can say no."""


def judge_meetings(seen: Met) -> list[Finding]:
    """One finding for each relay, in the layer where it went wrong."""
    if seen.is_newcomer:
        said = "the first start redeems the invite; only then it shows whether the relay lets it in"
        return [skipped(Layer.MEMBERSHIP, said)]
    if not seen.meetings:
        return [ok(Layer.MEMBERSHIP, "this node joins no relay")]
    return [_judge_one(one, seen) for one in seen.meetings]


def _judge_one(meeting: Meeting, seen: Met) -> Finding:
    """The running node knows better than the doctor, as far as it says something."""
    told = seen.by_node.get(meeting.peer)
    if told == "":
        return ok(Layer.MEMBERSHIP, f"the running node is linked to {meeting.peer}")
    found = _judge_meeting(meeting)
    if told is not None and found.layer is Layer.MEMBERSHIP and not seen.secret_known:
        do = "give the doctor the node's --join (or --mesh-secret-file) to learn more"
        return problem(Layer.MEMBERSHIP, f"the running node is not linked: {told}", do)
    return found


def _judge_meeting(meeting: Meeting) -> Finding:
    if meeting.outcome is Outcome.ADMITTED:
        return _admitted(meeting)
    layer, verdict, said, do = _REFUSALS[meeting.outcome]
    text = said.format(
        peer=meeting.peer,
        agent=meeting.agent or "an unknown program",
        theirs=list(meeting.versions) or "others",
        ours=list(limits.VERSIONS_SUPPORTED),
        said=meeting.said or "it says nothing",
    )
    return Finding(layer, verdict, text, do)


def _admitted(meeting: Meeting) -> Finding:
    took = f"{meeting.round_trip_seconds * 1000:.0f} ms"
    who = f" ({meeting.agent})" if meeting.agent else ""
    return ok(Layer.MEMBERSHIP, f"{meeting.peer}{who} lets this node in, {took}")


MEMBERSHIP: Final = Check(
    "membership",
    Layer.MEMBERSHIP,
    _meet,
    judge_meetings,
    needs=(VERSIONS, REACH, SECRET),
    follows=(NODE, IDENTITY),
    seconds=MEET_SECONDS,
)
