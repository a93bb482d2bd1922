"""What a request's head says to the server: how its body ends, whether the connection stays, and
what is refused.

h11 has parsed it; what h11 lets pass and an application or a proxy could trip over is refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from aimo_node.edge.serving.limits import HttpLimits
from aimo_node.edge.serving.refusal import (
    BAD_HOST,
    BAD_TARGET,
    HEADERS_TOO_LARGE,
    TWO_LENGTHS,
    UNKNOWN_VERSION,
    Refusal,
    body_too_large,
)

Headers = list[tuple[bytes, bytes]]
_READ = frozenset({b"connection", b"content-length", b"host", b"transfer-encoding", b"upgrade"})
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)


@dataclass(slots=True)
class RequestHead:
    """The facts of one request's head that matter to the server."""

    target: bytes
    keeps_connection: bool
    is_websocket: bool
    is_http10: bool
    is_head: bool


def read_head(
    request: h11.Request, headers: Headers, arrived_bytes: int, limits: HttpLimits
) -> RequestHead | Refusal:
    """The facts of a head, or why the request is refused.

    `headers` are those of the request, as a list (h11's own is slow to go through).
    `arrived_bytes` came until the head was complete: the head, and perhaps some of what follows.
    """
    if request.http_version not in {b"1.1", b"1.0"}:
        return UNKNOWN_VERSION
    if len(headers) > limits.headers_max or (
        arrived_bytes > limits.header_bytes_max
        and _size_of(request.target, headers) > limits.header_bytes_max
    ):
        return HEADERS_TOO_LARGE
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            fields[name] = b"%b,%b" % (fields[name], value) if name in fields else value
    is_http10 = request.http_version == b"1.0"
    host = fields.get(b"host", b"")
    target = request.target if request.target.startswith(b"/") else _origin_form(request, host)
    refusal = _refuse_body(fields, limits, is_http10=is_http10)
    if refusal is not None:
        return refusal
    if host and _HOST.fullmatch(host) is None:
        return BAD_HOST
    if not target:
        return BAD_TARGET
    connection = [token.strip() for token in fields.get(b"connection", b"").lower().split(b",")]
    is_upgrade = b"upgrade" in connection and request.method == b"GET"
    return RequestHead(
        target,
        keeps_connection=not is_http10 and b"close" not in connection,
        is_websocket=is_upgrade and fields.get(b"upgrade", b"").lower() == b"websocket",
        is_http10=is_http10,
        is_head=request.method.upper() == b"HEAD",
    )


def _size_of(target: bytes, headers: Headers) -> int:
    # h11 has a limit for incomplete heads only: what completes one may be as large again
    return len(target) + sum(len(name) + len(value) for name, value in headers)


def _refuse_body(
    fields: dict[bytes, bytes], limits: HttpLimits, *, is_http10: bool
) -> Refusal | None:
    # Two ways to find the end of a body, and a proxy in front may take the other one: request
    # smuggling. HTTP/1.0 knows no chunks, so such a proxy may not see them.
    length = fields.get(b"content-length", b"")
    if b"transfer-encoding" in fields and (length or is_http10):
        return TWO_LENGTHS
    if length and int(length) > limits.body_bytes_max:
        return body_too_large(limits.body_bytes_max)
    return None


def _origin_form(request: h11.Request, host: bytes) -> bytes:
    """The path of an absolute target (what a client sends to a proxy) for this very host; else
    nothing.

    A host that differs from the Host header would pass by whoever checks that header. `*` and
    authorities belong to methods that no route knows, and an empty path is nothing an application
    expects.
    """
    absolute = _ABSOLUTE_TARGET.fullmatch(request.target)
    if absolute is None or absolute[1].lower() != host.lower():
        return b""
    return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
