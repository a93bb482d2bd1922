"""Who is connected: how many at most, how many per address, and who has waited longest without a
request. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Generic, TypeVar

Connection = TypeVar("Connection")


class ConnectionTable(Generic[Connection]):
    """All open connections. A connection is waiting from `add` on, or again from `set_waiting` on,
    until `set_busy`."""

    def __init__(self, connections_max: int, per_address_max: int) -> None:
        self._connections_max = connections_max
        self._per_address_max = per_address_max
        self._network_of: dict[Connection, str] = {}
        self._counts: dict[str, int] = {}
        self._waiting: dict[Connection, None] = {}  # in the order in which they began to wait

    def __len__(self) -> int:
        return len(self._network_of)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._network_of))

    @property
    def is_full(self) -> bool:
        """Whether room has to be made before `add`."""
        return len(self._network_of) >= self._connections_max

    def has_room_for(self, address: str) -> bool:
        """Whether another connection of this address is within its limit."""
        network = network_of(address)
        return network == "" or self._counts.get(network, 0) < self._per_address_max

    def add(self, connection: Connection, address: str) -> None:
        """Enters a connection, as waiting."""
        network = network_of(address)
        self._network_of[connection] = network
        self._counts[network] = self._counts.get(network, 0) + 1
        self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forgets a connection; idempotent."""
        network = self._network_of.pop(connection, None)
        if network is None:
            return
        self._waiting.pop(connection, None)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]

    def set_busy(self, connection: Connection) -> None:
        """A request has begun: it is not the one to make room."""
        self._waiting.pop(connection, None)

    def set_waiting(self, connection: Connection) -> None:
        """The request is over; the connection waits for the next one."""
        if connection in self._network_of:
            self._waiting[connection] = None

    def waiting_longest(self) -> Connection | None:
        """The connection that makes room when all places are taken; None when every one has a
        request."""
        return next(iter(self._waiting), None)


def network_of(address: str) -> str:
    """What counts as one machine: the address, with IPv6 its /64 network; "" for loopback, which is
    exempt."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return "" if ip.is_loopback else str(ipaddress.ip_network((int(ip), 64), strict=False))
        ip = ip.ipv4_mapped
    return "" if ip.is_loopback else str(ip)
