"""Which connections have been without a link for too long."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

Connection = TypeVar("Connection", bound=Hashable)


class UnlinkedConnections:
    """Remembers since when connections carry no link. Plain bookkeeping, no clock of its own."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._since: dict[Hashable, float] = {}

    def overdue(self, unlinked: Iterable[Connection], now: float) -> list[Connection]:
        """Of the connections without a link right now, those that have been so for too long.

        Args:
            unlinked: all connections that carry no link at the moment.
            now: seconds on any steady clock.
        """
        current = list(unlinked)
        self._since = {one: self._since.get(one, now) for one in current}
        return [one for one in current if now - self._since[one] >= self._seconds_max]
