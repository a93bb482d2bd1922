"""Fault: libp2p lets a peer send control frames as fast as it can, each one work for us.

A stranger could keep the whole node busy with pings, with frames that carry nothing, or with
streams that are opened and reset.
"""

from __future__ import annotations

from aimo_node.mesh.fixes.limits import (
    EMPTY_FRAMES_PER_SECOND_MAX,
    PINGS_PER_SECOND_MAX,
    STREAM_OPENINGS_PER_SECOND_MAX,
)


class FrameRates:
    """What one peer has sent in the current second. Each method is told the time, in seconds,
    and returns false when it was one too many."""

    __slots__ = ("_empty", "_openings", "_pings", "_since")

    def __init__(self) -> None:
        self._since = 0.0
        self._empty = 0
        self._openings = 0
        self._pings = 0

    def note_empty(self, now: float) -> bool:
        """Note a frame without payload."""
        self._turn_to(now)
        self._empty += 1
        return self._empty <= EMPTY_FRAMES_PER_SECOND_MAX

    def note_opening(self, now: float) -> bool:
        """Note a stream the peer opens."""
        self._turn_to(now)
        self._openings += 1
        return self._openings <= STREAM_OPENINGS_PER_SECOND_MAX

    def note_ping(self, now: float) -> bool:
        """Note a ping."""
        self._turn_to(now)
        self._pings += 1
        return self._pings <= PINGS_PER_SECOND_MAX

    def _turn_to(self, now: float) -> None:
        if now - self._since >= 1.0:
            self._since = now
            self._empty = self._openings = self._pings = 0
