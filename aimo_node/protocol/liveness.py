"""Whether the peer is there: a Ping after silence, suspect, dead. Times in seconds."""

from __future__ import annotations

from typing import Final

from aimo_node.protocol import limits

EARLY_PINGS: Final = 2
"""After the first: what they measure is no longer the noise of two nodes that start."""


class Liveness:
    """Deadlines of one link, from when it was last heard."""

    __slots__ = (
        *("_early", "_heard", "_nonce", "_open_nonce", "_pinged"),
        *("heard_at", "rtt_seconds", "suspect"),
    )

    def __init__(self, now: float) -> None:
        self._heard = self.heard_at = now
        self._pinged = now
        self._nonce = 0
        self._early = 0
        self._open_nonce: int | None = None
        self.suspect = False
        self.rtt_seconds: float | None = None

    def heard(self, now: float) -> bool:
        """Anything arrived; True if the peer had been suspect."""
        self._heard = self.heard_at = now
        recovered, self.suspect = self.suspect, False
        return recovered

    def excuse(self, now: float) -> None:
        """This node itself was away: that it has not heard the peer since says nothing."""
        self._heard = now
        self._open_nonce = None  # its answer would measure the pause, not the way

    def pong(self, nonce: int, now: float) -> None:
        """The answer to a Ping; an old or a second one tells nothing."""
        if nonce == self._open_nonce:
            self.rtt_seconds = now - self._pinged
            self._open_nonce = None

    def next_deadline(self) -> float:
        """When `ping_due`, `turned_suspect` or `is_dead` will change next."""
        deadlines = [self._ping_at()]
        if not self.suspect:
            deadlines.append(self._heard + limits.SUSPECT_SECONDS)
        deadlines.append(self._heard + limits.DEAD_SECONDS)
        return min(deadlines)

    def ping_due(self, now: float) -> int | None:
        """The nonce of the Ping to send now, if one is due."""
        if now < self._ping_at():
            return None
        self._early = max(0, self._early - 1)
        return self.ping(now)

    def measure(self, now: float) -> int:
        """As `ping`, and again soon: at the start both ends have other things to do."""
        self._early = EARLY_PINGS
        return self.ping(now)

    def _ping_at(self) -> float:
        """After silence; and now and then without, for a busy link has a round trip, too."""
        after_silence = max(self._heard, self._pinged) + limits.PING_SECONDS
        pause = limits.PING_SECONDS if self._early else limits.MEASURE_SECONDS
        return min(after_silence, self._pinged + pause)

    def ping(self, now: float) -> int:
        """The nonce of a Ping that is sent now, due or not."""
        self._pinged = now
        self._nonce += 1
        self._open_nonce = self._nonce
        return self._nonce

    def turned_suspect(self, now: float) -> bool:
        """True once, when the peer becomes suspect."""
        if self.suspect or now < self._heard + limits.SUSPECT_SECONDS:
            return False
        self.suspect = True
        return True

    def is_dead(self, now: float) -> bool:
        """Whether the peer is to be given up."""
        return now >= self._heard + limits.DEAD_SECONDS
