"""Multiaddresses of the one kind used here: an IP address or a host name, a TCP port, a peer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.fixes.library import (
    Multiaddr,
    MultiaddrError,
    OpenConnectionError,
    get_network_addrs,
)

_NAME_PROTOCOLS = {"dns": 0, "dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}


def tcp_endpoint(address: Multiaddr) -> tuple[str, int]:
    """IP address and port of ``/ip4/…/tcp/…`` or ``/ip6/…/tcp/…``.

    Raises:
        OpenConnectionError: an address of another kind.
    """
    parts = _split(address)
    if len(parts) < 2 or parts[0][0] not in {"ip4", "ip6"} or parts[1][0] != "tcp":
        raise OpenConnectionError(f"{address} is not an IP address with a TCP port")
    return parts[0][1], int(parts[1][1])


def is_dialable(address: Multiaddr) -> bool:
    """Whether this is plain TCP, and not a circuit, WebSocket or QUIC address."""
    kinds = [kind for kind, _ in _split(address)]
    return (
        kinds[:2] in (["ip4", "tcp"], ["ip6", "tcp"])
        or (kinds[:1] != [] and kinds[0] in _NAME_PROTOCOLS and kinds[1:2] == ["tcp"])
    ) and kinds[2:] in ([], ["p2p"])


def parse_multiaddr(text: str) -> Multiaddr:
    """Parse an address.

    Raises:
        ValueError: not a multiaddress.
    """
    try:
        return Multiaddr(text)
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"{text[:200]!r} is not a multiaddress") from error


def socket_multiaddr(host: str, port: int) -> Multiaddr:
    """The multiaddress of a socket's end."""
    kind = "ip6" if ":" in host else "ip4"
    return Multiaddr(f"/{kind}/{host.split('%', maxsplit=1)[0]}/tcp/{port}")


async def resolve(address: Multiaddr) -> list[Multiaddr]:
    """Replace a host name by its IP addresses, asking the operating system.

    Raises:
        OSError: the name is unknown, or the name server is away.
    """
    parts = _split(address)
    kind, name = parts[0]
    if kind not in _NAME_PROTOCOLS:
        return [address]
    port = int(parts[1][1])
    found = await trio.socket.getaddrinfo(
        name, port, family=_NAME_PROTOCOLS[kind], type=trio.socket.SOCK_STREAM
    )
    return [socket_multiaddr(str(end[0]), int(end[1])) for *_, end in found]


async def candidates(peer: PeerId, addresses: Iterable[str]) -> list[Multiaddr]:
    """Where to dial for a peer: its addresses that are plain TCP, names resolved, each once.

    Raises:
        ValueError: an address is none.
        OSError: a name is unknown, or the name server is away.
    """
    found: list[Multiaddr] = []
    for text in addresses:
        plain, _, named = text.partition("/p2p/")
        if named not in {"", peer}:
            continue
        address = parse_multiaddr(plain)
        if is_dialable(address):
            found += await resolve(address)
    return list(dict.fromkeys(found))


def expand_wildcards(addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Replace ``0.0.0.0`` and ``::`` by the machine's own addresses, loopback last."""
    expanded = [single for address in addresses for single in _expand(address)]
    return sorted(dict.fromkeys(expanded), key=lambda one: _is_loopback(tcp_endpoint(one)[0]))


def machine_addresses() -> list[str]:
    """The IP addresses of this machine, without loopback."""
    return [*get_network_addrs(4), *get_network_addrs(6)]


def _expand(address: Multiaddr) -> Iterator[Multiaddr]:
    host, port = tcp_endpoint(address)
    if not ipaddress.ip_address(host).is_unspecified:
        yield address
        return
    loopback, version = ("::1", 6) if ":" in host else ("127.0.0.1", 4)
    for own in (*get_network_addrs(version), loopback):
        yield socket_multiaddr(own, port)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _split(address: Multiaddr) -> list[tuple[str, str]]:
    return [(protocol.name, str(value)) for protocol, value in address.items()]
