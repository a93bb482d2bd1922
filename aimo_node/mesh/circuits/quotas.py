"""What a relay's members may cost it: reservations, circuits and bytes. Plain bookkeeping, no clock
of its own; times are seconds of any steady clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.allowance import Allowance

RESERVATION_SECONDS: Final = 600.0
"""How long a reservation lasts unless it is renewed; it also ends with the member's link."""
ACCOUNTS_MAX: Final = 4_096
"""Members whose use is remembered, those without circuits for as long as there is room: else a new
circuit, or a new link, would be a new allowance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitLimits:
    """What circuits may cost a relay. None of them ends a circuit by its age."""

    reservations_max: int = 1024
    """Members that can be reached through this relay; as many as it may have connections."""

    circuits_max: int = 512
    """Circuits at a time: each may hold two windows of 256 KiB while nobody reads at an end."""

    circuits_per_member_max: int = 64
    """Of those, such that begin or end at one member: an edge keeps links to 64 providers."""

    circuits_per_pair_max: int = 4
    """Of those, such that one member opened to one other. Two do; the rest is for what is about to
    end. Else a single member could fill another's places."""

    openings_at_once: int = 64
    """Circuits one member may ask for, and be asked for, in one go: an edge that starts."""

    asked_per_second: float = 4.0
    """Circuits one member may ask for in the long run: others take their turn at the same peer."""

    offered_per_second: float = 20.0
    """Circuits one member is offered in the long run. Each is a stream of the relay's to it, and
    who opens a hundred in a second loses the connection."""

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


class _Account:
    """What one member uses, and has used of late."""

    __slots__ = ("asked", "circuits", "offered", "rate")

    def __init__(self, limits: CircuitLimits, now: float) -> None:
        self.circuits = 0
        self.rate = Rate(limits.member_bytes_per_second, now)
        self.asked = Allowance(limits.openings_at_once, limits.asked_per_second, now)
        self.offered = Allowance(limits.openings_at_once, limits.offered_per_second, now)


class CircuitBook:
    """Who has a reservation, and how many circuits run between whom."""

    def __init__(self, limits: CircuitLimits) -> None:
        self._limits = limits
        self._expiries: dict[PeerId, float] = {}
        self._accounts: dict[PeerId, _Account] = {}
        self._pairs: Counter[tuple[PeerId, PeerId]] = Counter()
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

    def has_room(self, source: PeerId, destination: PeerId) -> bool:
        """Whether one more circuit between these members is within the limits."""
        limits = self._limits
        return (
            self.running < limits.circuits_max
            and self._pairs[source, destination] < limits.circuits_per_pair_max
            and all(
                self._accounts[member].circuits < limits.circuits_per_member_max
                for member in (source, destination)
                if member in self._accounts
            )
        )

    def take_opening(self, source: PeerId, destination: PeerId, now: float) -> bool:
        """Note that `source` asks for a circuit; false if it, or its peer, has had too many."""
        # in this order: who asks too often costs its peer nothing
        return self._account(source, now).asked.take(now) and self._account(
            destination, now
        ).offered.take(now)

    def open(self, source: PeerId, destination: PeerId, now: float) -> list[Rate]:
        """Note a circuit between these members; their rates."""
        self.running += 1
        self._pairs[source, destination] += 1
        accounts = [self._account(member, now) for member in (source, destination)]
        for account in accounts:
            account.circuits += 1
        return [account.rate for account in accounts]

    def close(self, source: PeerId, destination: PeerId) -> None:
        """A circuit between these members is over."""
        self.running -= 1
        self._pairs[source, destination] -= 1
        if not self._pairs[source, destination]:
            del self._pairs[source, destination]
        for member in (source, destination):
            self._accounts[member].circuits -= 1

    def _account(self, member: PeerId, now: float) -> _Account:
        account = self._accounts.pop(member, None) or _Account(self._limits, now)
        self._accounts[member] = account
        if len(self._accounts) > ACCOUNTS_MAX:
            # the one used longest ago; circuits_max is far less, so there is one
            idle = next(one for one, known in self._accounts.items() if not known.circuits)
            del self._accounts[idle]
        return account
