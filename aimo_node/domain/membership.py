"""Membership in a mesh that has an authority: certificates, invites, bans, what makes them good.

Values and decisions only: who signs and who keeps them stands elsewhere. Times are milliseconds
since the epoch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from aimo_node.domain.ids import PeerId, Role

MESH_KEY_BYTES: Final = 32
"""The name of a mesh with an authority is its public key, so the length tells the two forms of a
closed mesh apart: the name made from a mesh secret has 16 bytes."""
INVITE_ID_BYTES: Final = 16
CERTIFICATE_MS: Final = 7 * 24 * 3600 * 1000
"""How long a certificate is good, and so how long a ban can go unheard."""
SKEW_MS: Final = 30_000
"""How far two clocks may be apart; every computer that asks a time server is within a second."""
INVITE_USES_MAX: Final = 1_000
INVITE_MS_MAX: Final = 365 * 24 * 3600 * 1000
BANS_MAX: Final = 1_000
"""Bans that are told to everybody: only of peers whose certificates may still run."""
ALL_ROLES: Final = Role.RELAY | Role.PROVIDER | Role.EDGE


class Refusal(enum.IntEnum):
    """Why the authority gives no certificate; the numbers travel."""

    MALFORMED = 1
    NOT_AUTHORITY = 2
    """Whoever was asked is a member like others: ask the next."""
    BUSY = 3
    """Later it may be different."""
    UNKNOWN_INVITE = 4
    INVITE_EXPIRED = 5
    INVITE_USED = 6
    BANNED = 7
    NOT_A_MEMBER = 8
    CLOCK = 9
    FULL = 10

    @property
    def is_final(self) -> bool:
        """Whether asking again, or asking somebody else, is of no use."""
        return self not in {Refusal.NOT_AUTHORITY, Refusal.BUSY}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The authority's word that a peer belongs to the mesh.

    Attributes:
        mesh: the authority's public key.
        roles: what the peer may do.
        serial: grows with each certificate of a mesh.
    """

    mesh: bytes
    peer: PeerId
    roles: Role
    serial: int
    issued_ms: int
    expires_ms: int

    @property
    def renew_at_ms(self) -> int:
        """Half of its life: the other half is for an authority that is away."""
        return self.issued_ms + (self.expires_ms - self.issued_ms) // 2


@dataclass(frozen=True, slots=True)
class Invite:
    """What lets a peer become a member; whoever holds it may use it.

    Attributes:
        id: random; never shown by `repr`.
        uses: how many peers it admits.
    """

    mesh: bytes
    id: bytes = field(repr=False)
    roles: Role
    expires_ms: int
    uses: int


@dataclass(frozen=True, slots=True)
class BanList:
    """Who is shut out although a certificate of theirs may still run; a higher version replaces."""

    mesh: bytes
    version: int
    peers: frozenset[PeerId] = frozenset()


def clock_problem(theirs_ms: int, ours_ms: int) -> str | None:
    """What is wrong with our clock, given another's at the same moment; None within the skew."""
    ahead_ms = ours_ms - theirs_ms
    if abs(ahead_ms) <= SKEW_MS:
        return None
    side = "ahead of" if ahead_ms > 0 else "behind"
    return f"this machine's clock is {abs(ahead_ms) / 1000:.0f} s {side} the authority's"


def check_certificate(
    certificate: Certificate,
    *,
    peer: PeerId,
    mesh: bytes,
    roles: Role,
    now_ms: int,
    banned: frozenset[PeerId] = frozenset(),
) -> str | None:
    """Why a certificate, whose signature was verified, does not admit a peer; None if it does.

    Args:
        peer: who shows it, as Noise proved.
        roles: what the peer says it does.
        now_ms: by this node's clock.
    """
    if certificate.mesh != mesh:
        return "the certificate is of another mesh"
    if certificate.peer != peer:
        return "the certificate is another peer's"
    if peer in banned:
        return "the peer is banned"
    missing = roles & ALL_ROLES & ~certificate.roles
    if missing:
        return f"the certificate is not for the role {' and '.join(missing.names)}"
    return _time_problem(certificate, now_ms)


def _time_problem(certificate: Certificate, now_ms: int) -> str | None:
    if now_ms > certificate.expires_ms + SKEW_MS:
        return f"the certificate expired {_ago(now_ms - certificate.expires_ms)} ago"
    if certificate.issued_ms > now_ms + SKEW_MS:
        seconds = (certificate.issued_ms - now_ms) / 1000
        return (
            f"the certificate begins {seconds:.0f} s in the future, by the clock of whoever says"
            " this: that clock is behind the authority's, or the authority's was ahead"
        )
    return None


def _ago(milliseconds: int) -> str:
    seconds = milliseconds // 1000
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


@dataclass(frozen=True, slots=True)
class Grant:
    """What the authority's book says a new certificate may say."""

    roles: Role
    serial: int
    issued_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """One line of the authority's book.

    Attributes:
        expires_ms: when the latest certificate ends; 0 if there was none.
        banned_ms: since when it is banned; None if it is not.
    """

    peer: PeerId
    roles: Role
    joined_ms: int
    issued_ms: int
    expires_ms: int
    banned_ms: int | None = None
