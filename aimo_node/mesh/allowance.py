"""How much of something a peer may do: at once, and in the long run."""

from __future__ import annotations


class Allowance:
    """A bucket that fills by and by. `now` is in seconds of any steady clock."""

    __slots__ = ("_left", "_most", "_per_second", "_updated")

    def __init__(self, most: float, per_second: float, now: float) -> None:
        """`most` is there at the start and never exceeded."""
        self._most = self._left = most
        self._per_second = per_second
        self._updated = now

    def take(self, now: float) -> bool:
        """Take one; False if nothing is left."""
        grown = self._left + (now - self._updated) * self._per_second
        self._left = min(self._most, grown)
        self._updated = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
