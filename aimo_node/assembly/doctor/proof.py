"""Check of what this node has to prove that it belongs: a secret, or a certificate, or an invite.

Nothing is redeemed and nothing made: what there will be at the next start is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from aimo_node.assembly.certified import CERTIFIED_FILES, mesh_of_state
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.folder import IDENTITY
from aimo_node.assembly.doctor.program import CONFIGURATION, Configured
from aimo_node.assembly.doctor.running_node import NODE
from aimo_node.assembly.doctor.threads import in_thread
from aimo_node.assembly.membership import (
    SECRET_FILE,
    has_authority,
    mesh_secret,
    refuse_forgotten_mesh,
)
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import SKEW_MS, Certificate, Invite, check_certificate
from aimo_node.errors import ConfigError, RemoteProtocolError
from aimo_node.mesh.identity import read_identity, verifier
from aimo_node.mesh.membership.credential import BANS_FILE, CERTIFICATE_FILE, read_kept
from aimo_node.mesh.membership.secret import read_secret
from aimo_node.protocol.certificates import open_bans, open_certificate, open_invite
from aimo_node.store.members import problem_of_book

OVERDUE_MS: Final = 3_600_000
"""A renewal is tried again every minute."""
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Papers:
    """What there is of a mesh with an authority.

    Attributes:
        mesh: the authority's public key.
        peer: this node; None before its first start.
        certificate: of this node in this mesh; None if there is none that can be read.
        invite: what the join string carries, if the authority signed it.
        invite_error: why there is no invite although the join string carries something.
        is_banned: by the list that this node knows.
        is_running: the node, which renews by itself.
        is_authority: and needs no invite.
        now_ms: by this machine's clock.
    """

    mesh: bytes
    roles: Role
    peer: PeerId | None
    certificate: Certificate | None
    invite: Invite | None
    invite_error: str
    is_banned: bool
    is_running: bool
    is_authority: bool
    now_ms: int

    @property
    def problem(self) -> str | None:
        """Why the certificate does not do; None if it does."""
        if self.certificate is None or self.peer is None:
            return "no certificate"
        return check_certificate(
            self.certificate, peer=self.peer, mesh=self.mesh, roles=self.roles, now_ms=self.now_ms
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """What this node has to prove that it belongs.

    Attributes:
        secret: None for an open mesh, for one with an authority, or while there is none yet.
        papers: in a mesh with an authority.
        error: why there is nothing to show; names the fix.
        do: what would mend that.
        is_known: the doctor has it, or knows that there is none; else only the running node does.
    """

    secret: bytes | None = None
    papers: Papers | None = None
    said: str = ""
    error: str = ""
    do: str = ""
    is_known: bool = True


_HIDDEN: Final = Proof(
    said="what this node has to show is not for this user to see", is_known=False
)


async def _find_proof(case: Case) -> Proof:
    seen = case.seen(CONFIGURATION)
    mesh, state = seen.usable.mesh, seen.usable.node.state
    node = case.glimpse(NODE)
    is_running = node is not None and node.holder is not None
    try:
        certified = has_authority(seen.usable, seen.targets)
        if not certified and not seen.targets and mesh.secret_file is None and is_running:
            # the flags were left out: what the node runs with lies in its folder
            certified = not (state / SECRET_FILE).exists() and mesh_of_state(state) is not None
        if certified:
            return await _find_papers(case, seen, is_running=is_running)
        if not is_running and not mesh.open and mesh.secret_file is None:
            refuse_forgotten_mesh(seen.usable, seen.targets)
        is_told = bool(seen.targets) or mesh.secret_file is not None or mesh.open
        if node is not None and node.relays and not is_told:
            return Proof(said="the running node has what it needs", is_known=False)
        return _find_secret(seen, is_told=is_told)
    except PermissionError:
        return _HIDDEN
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            return _HIDDEN
        do = "use the whole join string of the relay, or --mesh-secret-file with mode 0600"
        if not seen.targets and mesh.secret_file is None:
            do = "start it as the message says"
        return Proof(error=str(error), do=do)


def _find_secret(seen: Configured, *, is_told: bool) -> Proof:
    own = seen.usable.node.state / SECRET_FILE
    if is_told:
        value = mesh_secret(seen.usable, seen.targets)
    elif own.exists():
        value = read_secret(own)
    else:
        return Proof(said="a secret of its own is made at the first start")
    return Proof(value, said="the mesh is closed, the secret is here" if value else _OPEN)


_OPEN: Final = "the mesh is open: nothing has to be proved"


async def _find_papers(case: Case, seen: Configured, *, is_running: bool) -> Proof:
    state = seen.usable.node.state
    key_file, book = (state / CERTIFIED_FILES[name] for name in ("key", "members"))
    meshes = {target.mesh for target in seen.targets if target.mesh is not None}
    is_authority = seen.usable.mesh.authority or (is_running and key_file.exists())
    if is_authority:
        if not key_file.exists():
            return Proof(said="this relay becomes the authority of a new mesh at its first start")
        try:
            meshes.add(read_identity(key_file).public_key)
        except ConfigError as error:
            do = f"run: chmod 600 {key_file}" if "chmod" in str(error) else _RESTORE
            return Proof(error=f"the authority's key cannot be used: {error}", do=do)
        if found := await in_thread(partial(problem_of_book, book)):
            return Proof(error=f"the authority's book {book} cannot be used: {found}", do=_RESTORE)
    mesh = meshes.pop() if meshes else mesh_of_state(state)
    if meshes or mesh is None:
        said = "the join strings are of different meshes" if meshes else "there is no join string"
        return Proof(error=said, do="give the join strings of one mesh")
    identity = case.glimpse(IDENTITY)
    peer = identity.key.peer_id if identity is not None and identity.key is not None else None
    certificate, is_banned = _read_papers(state, mesh, peer)
    invite, invite_error = _read_invite(seen, mesh)
    now_ms = int(case.machine.now() * 1000)
    papers = Papers(
        mesh, seen.roles, peer, certificate, invite, invite_error,
        is_banned, is_running, is_authority, now_ms,
    )  # fmt: skip
    return Proof(papers=papers)


_RESTORE: Final = "restore it from a backup: docs/how-to/lose-the-authoritys-key.md says what then"


def _read_papers(state: Path, mesh: bytes, peer: PeerId | None) -> tuple[Certificate | None, bool]:
    """The certificate that is kept, and whether the list of bans that is kept names this node."""
    verify = verifier(mesh)
    certificate, bans = None, None
    try:
        kept = read_kept(state / CERTIFICATE_FILE)
        certificate = open_certificate(kept, verify) if kept else None
        kept = read_kept(state / BANS_FILE)
        bans = open_bans(kept, verify) if kept else None
    except RemoteProtocolError:
        pass  # of another mesh, or damaged: the node asks for another, too
    if certificate is not None and certificate.peer != peer:
        certificate = None
    return certificate, bans is not None and peer in bans.peers


def _read_invite(seen: Configured, mesh: bytes) -> tuple[Invite | None, str]:
    for target in seen.targets:
        if target.invite:
            try:
                return open_invite(target.invite, verifier(mesh)), ""
            except RemoteProtocolError as error:
                return None, str(error)
    return None, ""


def judge_proof(seen: Proof) -> list[Finding]:
    """The message of whoever refused a secret names the flag."""
    if seen.error:
        return [problem(Layer.MEMBERSHIP, seen.error, seen.do)]
    if seen.papers is None:
        return [ok(Layer.MEMBERSHIP, seen.said)]
    papers = seen.papers
    if papers.is_banned:
        return [problem(Layer.MEMBERSHIP, "the authority has banned this node", _allow(papers))]
    if papers.certificate is None:
        return [_judge_newcomer(papers)]
    return [_judge_certificate(papers, papers.certificate)]


def _allow(papers: Papers) -> str:
    return f"ask the mesh's owner, who can lift that: aimo peers allow {papers.peer}"


def _judge_newcomer(papers: Papers) -> Finding:
    ask = f"ask the mesh's owner for one, made with: aimo invite{_flags(papers.roles)}"
    if papers.is_authority:
        said = "this relay is the authority of its mesh, and certifies itself when it starts"
        return ok(Layer.MEMBERSHIP, said)
    if papers.invite_error:
        said = f"the invite in the join string does not do: {papers.invite_error}"
        return problem(Layer.MEMBERSHIP, said, f"copy the whole string; or {ask}")
    if papers.invite is None:
        return problem(Layer.MEMBERSHIP, "there is neither certificate nor invite", ask)
    missing = papers.roles & ~papers.invite.roles
    if missing:
        said = f"the invite is for {_names(papers.invite.roles)}, this node is {_names(missing)}"
        return problem(Layer.MEMBERSHIP, said, ask)
    left_ms = papers.invite.expires_ms - papers.now_ms
    if left_ms < -SKEW_MS:
        return problem(Layer.MEMBERSHIP, f"the invite expired {_span(-left_ms)} ago", ask)
    said = f"an invite for {_names(papers.invite.roles)}, good for {_span(left_ms)}"
    return ok(Layer.MEMBERSHIP, f"{said}; it is redeemed at the first start")


def _judge_certificate(papers: Papers, certificate: Certificate) -> Finding:
    missing = papers.roles & ~certificate.roles
    invited = papers.invite.roles if papers.invite is not None else Role.NONE
    if missing & ~invited and not papers.is_authority:
        said = f"the certificate is for {_names(certificate.roles)}, this node is {_names(missing)}"
        do = f"ask the mesh's owner for an invite, made with: aimo invite{_flags(papers.roles)}"
        return problem(Layer.MEMBERSHIP, said, do)
    ahead_ms = certificate.issued_ms - papers.now_ms
    if ahead_ms > SKEW_MS:
        said = f"the certificate begins {_span(ahead_ms)} in the future: this clock is behind"
        return problem(Layer.CLOCK, said, "set it, best by NTP: timedatectl set-ntp true")
    left_ms = certificate.expires_ms - papers.now_ms
    if left_ms < -SKEW_MS:
        said = f"the certificate expired {_span(-left_ms)} ago"
        if not papers.is_running:
            do = "nothing: the node asks for another one when it starts"
            return warning(Layer.MEMBERSHIP, said, do)
        return problem(Layer.MEMBERSHIP, f"{said}, and the authority gave no other", _AWAY)
    late_ms = papers.now_ms - certificate.renew_at_ms
    if papers.is_running and late_ms > OVERDUE_MS:
        said = f"the certificate wants renewal for {_span(late_ms)}, and ends in {_span(left_ms)}"
        return warning(Layer.MEMBERSHIP, said, _AWAY)
    said = f"a certificate as {_names(certificate.roles)}, good for {_span(left_ms)}"
    return ok(Layer.MEMBERSHIP, f"{said}, renewed by itself")


_AWAY: Final = (
    "start the authority of the mesh, and see that this node, or a relay that it is linked to, can"
    " reach it; the node's log says why it could not (certificate.not_renewed)"
)


def _names(roles: Role) -> str:
    return " and ".join(roles.names)


def _flags(roles: Role) -> str:
    return "".join(f" --role {name}" for name in roles.names)


def _span(milliseconds: int) -> str:
    for name, size in (("d", _DAY_MS), ("h", 3_600_000), ("min", 60_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds // size} {name}"
    return f"{milliseconds // 1000} s"


PROOF: Final = Check(
    "proof",
    Layer.MEMBERSHIP,
    _find_proof,
    judge_proof,
    needs=(CONFIGURATION,),
    follows=(NODE, IDENTITY),
)
