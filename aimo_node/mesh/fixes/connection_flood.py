"""Fault: a thousand idle TCP connects keep everybody else out for ten seconds.

`ArrivalGate` counts sockets that have not proved a peer id. When one address, or all together,
have too many of them, the oldest that never said a word makes room: an honest peer speaks at
once and is through in milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from aimo_node.mesh.fixes.limits import HostLimits


class ArrivingSocket(Protocol):
    """What the gate needs of a socket."""

    has_spoken: bool

    def close_now(self) -> None:
        """Close it at once."""


@dataclass(eq=False, slots=True)
class Arrival:
    """One accepted socket, from accept to its end."""

    address: str
    socket: ArrivingSocket
    is_established: bool = field(default=False)


class ArrivalGate:
    """Decides who may come in. Plain bookkeeping: no clock, no task."""

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        # A dict keeps the order of arrival and finds any entry at once.
        self._waiting: dict[Arrival, None] = {}
        self._waiting_by_address: Counter[str] = Counter()
        self._established = 0
        self._established_by_address: Counter[str] = Counter()

    def admit(self, address: str, socket: ArrivingSocket) -> Arrival | None:
        """Let a new socket in, if need be at the cost of an older, silent one.

        Returns:
            The arrival, to be passed to `leave` at its end; None if it must be closed.
        """
        limits = self._limits
        if (
            self._established >= limits.connections_max
            or self._established_by_address[address] >= limits.connections_per_address_max
        ):
            return None
        if self._waiting_by_address[address] >= limits.handshakes_per_address_max:
            if not self._evict(lambda waiting: waiting.address == address):
                return None
        elif len(self._waiting) >= limits.handshakes_max and not self._evict(lambda _: True):
            return None
        arrival = Arrival(address, socket)
        self._waiting[arrival] = None
        self._waiting_by_address[address] += 1
        return arrival

    def establish(self, arrival: Arrival) -> None:
        """The handshakes are done: the socket counts as a connection from now on."""
        if arrival in self._waiting:
            self._forget_waiting(arrival)
            arrival.is_established = True
            self._established += 1
            self._established_by_address[arrival.address] += 1

    def leave(self, arrival: Arrival) -> None:
        """The socket is gone."""
        if arrival.is_established:
            arrival.is_established = False
            self._established -= 1
            _count_down(self._established_by_address, arrival.address)
        elif arrival in self._waiting:
            self._forget_waiting(arrival)

    def _evict(self, is_candidate: Callable[[Arrival], bool]) -> bool:
        for arrival in self._waiting:
            if not arrival.socket.has_spoken and is_candidate(arrival):
                self._forget_waiting(arrival)
                arrival.socket.close_now()
                return True
        return False

    def _forget_waiting(self, arrival: Arrival) -> None:
        del self._waiting[arrival]
        _count_down(self._waiting_by_address, arrival.address)


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
