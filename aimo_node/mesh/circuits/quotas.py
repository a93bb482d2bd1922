"""What a relay's members may cost it: reservations, circuits and bytes. Plain bookkeeping, no clock
of its own; times are seconds of any steady clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from aimo_node.domain.ids import PeerId

RESERVATION_SECONDS: Final = 600.0
"""How long a reservation lasts unless it is renewed; it also ends with the member's link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitLimits:
    """What circuits may cost a relay. None of them ends a circuit by its age."""

    reservations_max: int = 1024
    """Members that can be reached through this relay; as many as it may have connections."""

    circuits_max: int = 512
    """Circuits at a time: each may hold two windows of 256 KiB while nobody reads at an end."""

    circuits_per_member_max: int = 64
    """Of those, such that begin or end at one member: an edge keeps links to 64 providers."""

    member_bytes_per_second: float = 64e6
    """Through all circuits of one member, both directions together: half of what a gigabit port
    passes on, so that no member has it alone. Beyond it the member's circuits slow down."""

    circuit_bytes_max: int = 0
    """Through one circuit, both directions together; then it breaks off. 0 sets no limit, for an
    answer may take any time; a relay that pays for its traffic may want one."""


class Rate:
    """Bytes per second; a second's worth may come at once."""

    __slots__ = ("_balance", "_per_second", "_updated")

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = self._balance = per_second
        self._updated = now

    def spend(self, count: int, now: float) -> float:
        """Note `count` bytes; how many seconds to wait before the next."""
        grown = self._balance + (now - self._updated) * self._per_second
        self._balance = min(self._per_second, grown) - count
        self._updated = now
        return max(0.0, -self._balance / self._per_second)


class CircuitBook:
    """Who has a reservation, and how many circuits run between whom."""

    def __init__(self, limits: CircuitLimits) -> None:
        self._limits = limits
        self._expiries: dict[PeerId, float] = {}
        self._circuits: Counter[PeerId] = Counter()
        self._rates: dict[PeerId, Rate] = {}
        self.running = 0
        """Circuits at the moment."""

    @property
    def reservations(self) -> int:
        """Reservations at the moment, those that expired unnoticed among them."""
        return len(self._expiries)

    def reserve(self, member: PeerId, now: float) -> bool:
        """Make or renew a reservation; false if there are too many."""
        if member not in self._expiries and len(self._expiries) >= self._limits.reservations_max:
            self._expiries = {one: at for one, at in self._expiries.items() if at > now}
            if len(self._expiries) >= self._limits.reservations_max:
                return False
        self._expiries[member] = now + RESERVATION_SECONDS
        return True

    def has_reservation(self, member: PeerId, now: float) -> bool:
        """Whether others may reach this member through the relay."""
        return self._expiries.get(member, now) > now

    def withdraw(self, member: PeerId) -> None:
        """The member has gone."""
        self._expiries.pop(member, None)

    def has_room(self, *members: PeerId) -> bool:
        """Whether one more circuit between these members is within the limits."""
        most = self._limits.circuits_per_member_max
        return self.running < self._limits.circuits_max and all(
            self._circuits[member] < most for member in members
        )

    def open(self, *members: PeerId, now: float) -> list[Rate]:
        """Note a circuit between these members; their rates."""
        self.running += 1
        for member in members:
            self._circuits[member] += 1
            if member not in self._rates:
                self._rates[member] = Rate(self._limits.member_bytes_per_second, now)
        return [self._rates[member] for member in members]

    def close(self, *members: PeerId) -> None:
        """A circuit between these members is over."""
        self.running -= 1
        for member in members:
            self._circuits[member] -= 1
            if not self._circuits[member]:
                del self._circuits[member], self._rates[member]
