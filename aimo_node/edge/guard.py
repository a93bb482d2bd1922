"""Who is let in: Host, Origin, content type, size and key, decided before Quart sees a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from aimo_node.edge.auth import ClientKeys
from aimo_node.edge.settings import LOOPBACK_HOSTS, EdgeSettings, is_loopback
from aimo_node.errors import PayloadTooLarge, PermissionDenied, UnsupportedContentType

OPEN_PATHS: Final = frozenset({"/v1/health", "/readyz"})
"""Asked by load balancers and process supervisors, which have no key."""

METRICS_PATH: Final = "/metrics"

Scope: TypeAlias = Mapping[str, Any]
"""An ASGI scope of type http or websocket."""

_GUARDED: Final = frozenset(
    {
        b"host",
        b":authority",
        b"origin",
        b"content-type",
        b"content-length",
        b"authorization",
        b"x-api-key",
    }
)


class Guard:
    """Decides about a request from its head alone, in one pass and without I/O."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._keys = ClientKeys(settings.api_keys)
        self._hosts = settings.allowed_hosts
        self._behind_proxy = settings.behind_proxy
        self._body_bytes_max = settings.body_bytes_max

    def admit(self, scope: Scope) -> str:
        """Let the request of an ASGI HTTP or WebSocket scope in.

        Returns:
            The consumer's opaque name; empty where no keys are configured or none is needed.

        Raises:
            PermissionDenied, UnsupportedContentType, PayloadTooLarge, AuthenticationFailed.
        """
        head = {name: value for name, value in scope["headers"] if name in _GUARDED}
        host = head.get(b"host") or head.get(b":authority") or b""
        if self._hosts is not None:
            _check_host(host, self._hosts)
        origin = head.get(b"origin")
        if origin is not None:
            _check_origin(origin, host)
        if scope["type"] == "http" and scope["method"] == "POST":
            self._check_body(head)
        path = scope["path"]
        if path in OPEN_PATHS or (path == METRICS_PATH and self._is_local(scope, host)):
            return ""
        return self._keys.consumer(_presented_key(head))

    def _check_body(self, head: dict[bytes, bytes]) -> None:
        content_type = head.get(b"content-type", b"")
        if content_type != b"application/json":
            media_type = content_type.partition(b";")[0].strip().lower()
            if media_type != b"application/json":
                # a page can send text/plain or a form anywhere without being asked
                raise UnsupportedContentType("Send the body as 'Content-Type: application/json'.")
        length = head.get(b"content-length", b"")
        # the length of the digits first: converting thousands of them is refused by Python
        if length.isdigit() and (len(length) > 15 or int(length) > self._body_bytes_max):
            raise too_large(self._body_bytes_max)

    def _is_local(self, scope: Scope, host: bytes) -> bool:
        """Whether a scraper on this machine asks: no proxy, and no page with a rebound name."""
        client = scope.get("client")
        if self._behind_proxy or client is None or not is_loopback(client[0]):
            return False
        return _name_of(host) in LOOPBACK_HOSTS


def too_large(bytes_max: int) -> PayloadTooLarge:
    """The error for a body over `bytes_max`."""
    return PayloadTooLarge(f"The body is over {bytes_max} bytes.")


def _check_host(host: bytes, allowed: frozenset[str]) -> None:
    name = _name_of(host)
    if name not in LOOPBACK_HOSTS and name not in allowed:
        raise PermissionDenied(
            "This node is not served under that name: use localhost, or have the owner add "
            "the name to the allowed hosts."
        )


def _check_origin(origin: bytes, host: bytes) -> None:
    """Refuse a page of another site, port or file: its origin is not the host it talks to."""
    _, separator, authority = origin.partition(b"://")
    if not separator or not host or authority.lower() != host.lower():
        raise PermissionDenied("Pages of other origins may not use this node.")


def _name_of(host: bytes) -> str:
    """The name in a Host header, without the port."""
    name = host.decode("latin-1").lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def _presented_key(head: dict[bytes, bytes]) -> bytes | None:
    authorization = head.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return head.get(b"x-api-key")
