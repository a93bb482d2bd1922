"""Check of membership: does each relay let this node in.

In a mesh with a secret anybody who has it may ask, so the doctor does. In one with an authority a
certificate is good for one peer: the doctor shows the node's own, as the node, if that is not
running; else it believes what the running node says of its links, and asks relays only for what
they tell everybody.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimo_node import __version__
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict, ok, problem, warning
from aimo_node.assembly.doctor.folder import IDENTITY
from aimo_node.assembly.doctor.names import DNS
from aimo_node.assembly.doctor.program import CONFIGURATION, VERSIONS
from aimo_node.assembly.doctor.proof import PROOF, Papers
from aimo_node.assembly.doctor.reach import REACH, Answer
from aimo_node.assembly.doctor.running_node import NODE
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import SKEW_MS
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.probes.meeting import Meeting, Outcome
from aimo_node.protocol import limits
from aimo_node.protocol.handshake import Admission, Doorkeeper

MEET_SECONDS: Final = 7.4
"""Dial, Hello, Identify and a question, each at its limit, and a goodbye."""


@dataclass(frozen=True, slots=True)
class Met:
    """What came of meeting the relays.

    Attributes:
        by_node: what the running node says of its links, see `NodeSeen.relays`.
        proof_known: the doctor showed what the node would show.
        papers: in a mesh with an authority.
    """

    meetings: Sequence[Meeting]
    by_node: Mapping[str, str] = field(default_factory=dict)
    proof_known: bool = True
    papers: Papers | None = None


async def _meet(case: Case) -> Met:
    from aimo_node.mesh.probes.probing import meet_relays  # noqa: PLC0415 (loads libp2p)

    answering = {reply.peer for reply in case.seen(REACH) if reply.answer is Answer.LIBP2P}
    places = case.seen(DNS)
    relays = {
        peer: [place.text for place in places.of(peer) if place.ends]
        for peer in places.peers
        if peer in answering
    }
    node, proof = case.glimpse(NODE), case.seen(PROOF)
    by_node = node.relays if node is not None else {}
    if not relays:
        return Met((), by_node)
    identity = _whom_to_be(case)
    shown: Doorkeeper | None
    if proof.papers is None:
        agent = f"aimo-doctor/{__version__}"
        shown = Admission(identity.peer_id, proof.secret, Role.NONE, agent=agent)
    else:
        shown = _certificate(case, proof.papers, identity.peer_id)
    now_ms = int(case.machine.now() * 1000) if proof.papers is not None else None
    meetings = await meet_relays(identity, shown, relays, now_ms=now_ms)
    return Met(meetings, by_node, proof.is_known, proof.papers)


def _whom_to_be(case: Case) -> KeyPair:
    """The node's own identity; not while it runs, since a relay keeps one link per peer."""
    node, identity = case.glimpse(NODE), case.glimpse(IDENTITY)
    is_free = node is not None and node.holder is None
    if is_free and identity is not None and identity.key is not None:
        return identity.key
    return KeyPair.from_seed(os.urandom(32))


def _certificate(case: Case, papers: Papers, peer: PeerId) -> Credential | None:
    """What the node would show; None if it has nothing, or runs and shows it itself."""
    if papers.certificate is None or papers.peer != peer:
        return None
    state = case.seen(CONFIGURATION).usable.node.state
    credential = Credential(
        papers.mesh, peer, Role.NONE, state, clock_ms=lambda: int(case.machine.now() * 1000)
    )
    credential.agent = f"aimo-doctor/{__version__}"
    return credential


_SAME: Final = "use the join string that this relay prints (or --mesh-secret-file with its secret)"
_INVITE: Final = "join with an invite of that mesh (aimo invite), or join another one"
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
        "the mesh of {peer} is open, this node comes to a closed one",
        "give --open here and leave out what is to be proved; or close the mesh",
    ),
    Outcome.MESH_IS_CLOSED: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "the mesh of {peer} is closed: it wants a secret",
        _SAME,
    ),
    Outcome.MESH_HAS_SECRET: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "the mesh of {peer} has a secret, and this node a certificate of another mesh",
        _SAME,
    ),
    Outcome.MESH_HAS_AUTHORITY: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "the mesh of {peer} admits by invite: it has an authority, and no secret",
        _INVITE,
    ),
    Outcome.OTHER_MESH: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "{peer} is in another mesh: the secrets differ",
        _SAME,
    ),
    Outcome.OTHER_AUTHORITY: (
        Layer.MEMBERSHIP,
        Verdict.PROBLEM,
        "{peer} is in another mesh: its authority is another",
        _INVITE,
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
    if not seen.meetings:
        return [ok(Layer.MEMBERSHIP, "this node joins no relay")]
    found = [_judge_one(one, seen) for one in seen.meetings]
    papers = seen.papers
    if papers is not None and not papers.is_running and papers.problem is not None:
        found.append(_judge_way_to_the_authority(seen, papers))
    return found


def _judge_way_to_the_authority(seen: Met, papers: Papers) -> Finding:
    """A node that has to ask for a certificate must find who gives it."""
    words = {one.peer: one.word for one in seen.meetings if one.word is not None}
    found = next((peer for peer, word in words.items() if word.has_authority), None)
    if found is not None:
        what = "renew the certificate" if papers.certificate is not None else "redeem the invite"
        said = f"{found} answers for the authority of the mesh, which can {what}"
        return ok(Layer.MEMBERSHIP, said)
    if not any(word.has_authority is False for word in words.values()):
        said = "no relay says whether the authority of the mesh can be asked"
        return warning(Layer.MEMBERSHIP, said, "try again; they may be busy or far away")
    said = "no relay is the authority of the mesh or has a link to it: this node cannot join now"
    do = "start the authority; members go on without it, but joining takes it"
    return problem(Layer.MEMBERSHIP, said, do)


def _judge_one(meeting: Meeting, seen: Met) -> Finding:
    """The running node knows better than the doctor, as far as it says something."""
    told = seen.by_node.get(meeting.peer)
    if told == "":
        return ok(Layer.MEMBERSHIP, f"the running node is linked to {meeting.peer}")
    found = _judge_meeting(meeting, seen.papers)
    if told is None or found.layer is not Layer.MEMBERSHIP:
        return found
    if seen.papers is not None:
        return _refused(meeting, f"the running node is not linked: {told}", seen.papers)
    if not seen.proof_known:
        do = "give the doctor the node's --join (or --mesh-secret-file) to learn more"
        return problem(Layer.MEMBERSHIP, f"the running node is not linked: {told}", do)
    return found


def _judge_meeting(meeting: Meeting, papers: Papers | None) -> Finding:
    if meeting.outcome is Outcome.ADMITTED:
        return _admitted(meeting)
    if meeting.outcome is Outcome.ASKED:
        said = f"{meeting.peer} answers; there is no certificate yet to be let in with"
        return ok(Layer.MEMBERSHIP, said)
    if meeting.outcome is Outcome.NOT_ADMITTED and papers is not None:
        return _refused(meeting, f"no link to {meeting.peer}: {meeting.said}", papers)
    layer, verdict, said, do = _REFUSALS[meeting.outcome]
    text = said.format(
        peer=meeting.peer,
        agent=meeting.agent or "an unknown program",
        theirs=list(meeting.versions) or "others",
        ours=list(limits.VERSIONS_SUPPORTED),
        said=meeting.said or "it says nothing",
    )
    return Finding(layer, verdict, text, do)


def _refused(meeting: Meeting, said: str, papers: Papers) -> Finding:
    """What one side has against the other's certificate is said as `check_certificate` says it."""
    if meeting.word is not None and abs(meeting.word.ahead_seconds) * 1000 > SKEW_MS:
        return warning(Layer.MEMBERSHIP, said, "set this machine's clock first, see below")
    if papers.problem is not None and papers.certificate is not None and not papers.is_running:
        return warning(Layer.MEMBERSHIP, said, "see what is said of the authority below")
    if "banned" in said:
        do = f"ask the mesh's owner, who can lift that: aimo peers allow {papers.peer or 'PEER'}"
        said = said.replace("the peer is banned", "the mesh has banned this node")
        return problem(Layer.MEMBERSHIP, said, do)
    if "in the future" in said or ("expired" in said and papers.problem is None):
        do = f"the clock of {meeting.peer} is wrong, or this one: let NTP keep both"
        return problem(Layer.CLOCK, said, do)
    do = "ask the mesh's owner what is known of this node (aimo peers list), or for a new invite"
    return problem(Layer.MEMBERSHIP, said, do)


def _admitted(meeting: Meeting) -> Finding:
    took = f"{meeting.round_trip_seconds * 1000:.0f} ms"
    who = f" ({meeting.agent})" if meeting.agent else ""
    return ok(Layer.MEMBERSHIP, f"{meeting.peer}{who} lets this node in, {took}")


MEMBERSHIP: Final = Check(
    "membership",
    Layer.MEMBERSHIP,
    _meet,
    judge_meetings,
    needs=(VERSIONS, REACH, PROOF),
    follows=(NODE, IDENTITY),
    seconds=MEET_SECONDS,
)
