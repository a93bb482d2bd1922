"""What comes of meeting a relay without joining it; needs no libp2p."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from aimo_node.domain.ids import PeerId


@dataclass(frozen=True, slots=True)
class Sighting:
    """How a peer sees this machine.

    Attributes:
        local: IP address and port of this end of the connection.
        observed: the same as the peer sees it; None if it does not say.
        signed_at: when the peer signed its addresses, by its own clock, in seconds since 1970; its
            clock cannot be behind that. None if it says nothing.
    """

    local: tuple[str, int]
    observed: tuple[str, int] | None = None
    signed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """What a relay of a mesh with an authority tells everybody who asks.

    Attributes:
        has_authority: it is the authority, or has a link to it; None if it is too busy to say.
        ahead_seconds: by how much its clock, or the authority's, is ahead; negative: behind.
    """

    has_authority: bool | None
    ahead_seconds: float


class Outcome(enum.Enum):
    """How far a meeting came."""

    ADMITTED = "admitted"
    ASKED = "asked"
    """Without a Hello: there was nothing to show."""
    UNREACHED = "unreached"
    STRANGER = "stranger"
    SILENT = "silent"
    BROKEN = "broken"
    GOING_AWAY = "going away"
    OTHER_VERSION = "other version"
    OTHER_MESH = "other mesh"
    MESH_IS_OPEN = "mesh is open"
    MESH_IS_CLOSED = "mesh is closed"
    MESH_HAS_SECRET = "mesh has a secret"  # noqa: S105 (not one)
    MESH_HAS_AUTHORITY = "mesh has an authority"
    OTHER_AUTHORITY = "other authority"
    NOT_ADMITTED = "not admitted"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What came of meeting one relay.

    Attributes:
        said: the reason in words, ours or the relay's.
        versions: of the wire, as the relay offers them.
        agent: the relay's program and version.
    """

    peer: PeerId
    outcome: Outcome
    said: str = ""
    agent: str = ""
    versions: tuple[int, ...] = ()
    round_trip_seconds: float = 0.0
    sighting: Sighting | None = None
    word: Word | None = None
