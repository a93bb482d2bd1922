"""Which addresses that a peer tells are worth a connection. They are hostile input: a member could
have this node knock at any door."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

TARGETS_MAX: Final = 8
"""Addresses of one peer that are tried in one round, whatever it tells in how many messages."""
PORT_MIN: Final = 1024
"""Below are the services of hosts; no router gives such a port to a connection from inside."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FAMILIES: Final[dict[str, type[Address]]] = {
    "ip4": ipaddress.IPv4Address,
    "ip6": ipaddress.IPv6Address,
}


def worth_trying(told: Iterable[str], *, loopback: bool = False) -> list[str]:
    """Of the addresses that a peer tells those that may be tried, the best first.

    Plain IP addresses with a TCP port from `PORT_MIN` on, as ``/ip4/…/tcp/…``, each once, at most
    `TARGETS_MAX`. Those of private networks come behind the others: they help in the same network
    only. Never those that lead to this machine or to all machines at once.

    Args:
        loopback: whether this machine itself may be meant, as when its relay is here, too.
    """
    found: dict[str, bool] = {}
    for text in told:
        parsed = _parse(text)
        if parsed is not None and _is_allowed(parsed[0], loopback=loopback):
            address, port = parsed
            found.setdefault(f"/ip{address.version}/{address}/tcp/{port}", address.is_private)
    return sorted(found, key=lambda one: found[one])[:TARGETS_MAX]


class Targets:
    """What may be tried in one round: no more than `TARGETS_MAX`, however often the peer tells."""

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback
        self._tried: set[str] = set()

    def of(self, told: Iterable[str]) -> list[str]:
        """What of this may be tried, the best first."""
        allowed = []
        for target in worth_trying(told, loopback=self._loopback):
            if target in self._tried or len(self._tried) < TARGETS_MAX:
                self._tried.add(target)
                allowed.append(target)
        return allowed


def _parse(text: str) -> tuple[Address, int] | None:
    parts = text.split("/")
    if len(parts) not in {5, 7} or parts[0] or parts[3] != "tcp" or parts[1] not in _FAMILIES:
        return None
    if len(parts) == 7 and parts[5] != "p2p":
        return None
    try:
        address = _FAMILIES[parts[1]](parts[2])
        port = int(parts[4])
    except ValueError:
        return None
    return (address, port) if PORT_MIN <= port <= 65_535 else None


def _is_allowed(address: Address, *, loopback: bool) -> bool:
    if address.is_loopback:
        return loopback
    if isinstance(address, ipaddress.IPv6Address):
        # what leads to an IPv4 address in disguise is checked by nobody
        disguised = address.ipv4_mapped or address.sixtofour or address.teredo or address in _NAT64
        if disguised or address.scope_id:
            return False
    elif address in _THIS_NETWORK:
        return False
    return not (
        address.is_unspecified
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
    )
