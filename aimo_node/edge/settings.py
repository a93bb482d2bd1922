"""What the edge's owner can set, and the limits of one request, with their reasons."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

MIB: Final = 1024 * 1024

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names a browser or an SDK on this machine uses for it; any port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """How one HTTP door behaves; never changes while it is open.

    Attributes:
        api_keys: SHA-256 digests of the keys consumers may use; empty: no key is asked for,
            which only a loopback bind may do.
        behind_proxy: a reverse proxy is in front, so that the client's address is the proxy's.
        allowed_hosts: values of ``Host`` beside loopback's names that are served, lower case,
            without port; None serves any, which is only sound where every route asks for a key.
        body_bytes_max: a request's body; images travel in it as base64.
        request_deadline_seconds: from admission to the last token.
        comment_seconds: silence after which a stream gets an SSE comment, so that proxies, which
            often cut after 30 or 60 s, keep it open.
        header_hold_seconds: how long the response's head waits for the first parts, so that an
            early error is still a proper status.
        answer_bytes_max: a whole answer gathered for a consumer that does not stream.
        socket_requests_max: requests at a time on one WebSocket.
        socket_message_bytes_max: one WebSocket message: a body and its envelope.
        socket_idle_seconds: a WebSocket on which nothing runs and nothing comes is closed.
    """

    api_keys: frozenset[bytes] = frozenset()
    behind_proxy: bool = False
    allowed_hosts: frozenset[str] | None = frozenset()
    body_bytes_max: int = 8 * MIB
    request_deadline_seconds: float = 600.0
    comment_seconds: float = 15.0
    header_hold_seconds: float = 15.0
    answer_bytes_max: int = 16 * MIB
    socket_requests_max: int = 32
    socket_message_bytes_max: int = 8 * MIB + 65536
    socket_idle_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class DrainSignals:
    """The two steps of going away, set once each by whoever owns the node.

    Attributes:
        begun: no new requests; running ones go on, idle WebSockets are closed.
        grace_over: running ones end now, each with an error the consumer can read.
    """

    begun: trio.Event = field(default_factory=trio.Event)
    grace_over: trio.Event = field(default_factory=trio.Event)


def allowed_hosts_for(
    bind_host: str, names: Iterable[str], *, keyed: bool, behind_proxy: bool = False
) -> frozenset[str] | None:
    """The `allowed_hosts` of a door bound to `bind_host` whose owner configured `names`.

    On loopback only loopback's names and the configured ones are served: a page whose name was
    rebound to 127.0.0.1 must not drive the node. A door in the open or behind a proxy, where
    every request needs a key no page has, serves any name unless some are configured.
    """
    configured = frozenset(name.lower() for name in names)
    is_private = is_loopback(bind_host) and not behind_proxy
    return configured if configured or is_private or not keyed else None


def is_loopback(host: str) -> bool:
    """Whether an address or name can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
