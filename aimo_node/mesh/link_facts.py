"""What can be told of an open link at this moment."""

from __future__ import annotations

import trio

from aimo_node.domain.links import LinkFacts
from aimo_node.mesh.link import Link


def facts_of(link: Link) -> LinkFacts:
    """Which path a link takes, why, since when, and how long the way is."""
    return LinkFacts(
        path=link.path,
        relay=link.stream.relay,
        address=link.stream.remote_address,
        reason=link.reason,
        since_ms=round(link.since * 1000),
        open_seconds=trio.current_time() - link.open_at if link.since else 0.0,
        round_trip_seconds=link.round_trip_seconds,
    )
