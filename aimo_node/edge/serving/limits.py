"""Every bound of the HTTP door, each with the reason for its number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one consumer, and all of them together, may take.

    Seconds are floats; a connection past its deadline is closed within half a second of it.
    """

    header_seconds: float = 10.0
    """TLS handshake, request line and headers together: one round trip needs a fraction of it, a
    slow sender of single bytes holds a connection no longer than this."""
    idle_seconds: float = 75.0
    """Between two requests on a kept connection: longer than the 60 s after which common proxies
    and SDK pools let go themselves, so that they and not we decide and no request meets a closing
    connection."""
    body_seconds: float = 60.0
    """From the end of the headers to the end of the body: 8 MiB at 1.2 Mbit/s."""
    write_stall_seconds: float = 30.0
    """Without the consumer's kernel taking a single byte: two heartbeats lost, then the reader
    counts as gone."""
    header_bytes_max: int = 65_536
    """Request line and headers: several times what SDKs, proxies and cookies add up to."""
    headers_max: int = 200
    """Header fields: parsing one costs microseconds, and 64 KiB would hold 16,000 of them."""
    body_bytes_max: int = 8 * MEBIBYTE
    """One request body: a long context with a few embedded images."""
    bodies_bytes_max: int = 256 * MEBIBYTE
    """All request bodies and unfinished WebSocket messages held at one time: memory stays bounded
    when every connection sends its largest body at once."""
    connections_max: int = 2048
    """Open connections: 1,000 streams with as many idle ones, within common limits on open files.
    When full, the connection that has waited longest without a request makes room."""
    connections_per_address_max: int = 256
    """Open connections of one address (of one /64 network with IPv6): no single machine takes all
    of them. Loopback is exempt: a reverse proxy or a load generator there speaks for many."""
    websocket_message_bytes_max: int = 8 * MEBIBYTE + 65_536
    """One WebSocket message: a body of the size above inside its envelope."""
    websocket_silence_seconds: float = 60.0
    """Without a frame from the consumer, though a ping went out every third of it: three pongs
    lost."""


@dataclass(frozen=True, slots=True)
class HttpBinding:
    """Where to listen, and with which certificate.

    Port 0 takes a free one. `tls_cert` and `tls_key` (PEM files) come together or not at all.
    """

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
