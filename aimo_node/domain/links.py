"""What a node knows of its link to a peer, for whoever wants to know why it is on which path."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aimo_node.domain.ids import PeerId


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One open link at one moment.

    Attributes:
        path: ``direct``, ``circuit`` or ``local``.
        relay: who carries a circuit; empty on any other path.
        address: the peer's, as this node sees it; empty on a circuit, where only the relay does.
        reason: why it is this path, in a few words for people; may name addresses and peers.
        since_ms: when the link opened, in milliseconds since the epoch.
        open_seconds: how long it has been open, by a clock that nobody sets.
        round_trip_seconds: as measured last; None before the first answer.
    """

    path: str
    relay: PeerId | None
    address: str
    reason: str
    since_ms: int
    open_seconds: float
    round_trip_seconds: float | None

    @property
    def since(self) -> str:
        """When the link opened, as ``2026-11-20T18:40:00Z``."""
        moment = datetime.fromtimestamp(self.since_ms / 1000, UTC)
        return moment.isoformat(timespec="seconds").replace("+00:00", "Z")

    @property
    def round_trip_ms(self) -> float | None:
        """The round trip in milliseconds, as precise as it means anything."""
        seconds = self.round_trip_seconds
        return None if seconds is None else round(seconds * 1000, 2)
