"""Every bound of the quarantine, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What strangers and peers may cost this node. Times in seconds."""

    connections_max: int = 1024
    """Established connections, about 64 KB each; a relay of a large mesh needs the most."""

    connections_per_address_max: int = 512
    """Of those from one IP address: half, so that one machine cannot shut out everybody else."""

    handshakes_max: int = 512
    """Accepted sockets that have not proved a peer id yet."""

    handshakes_per_address_max: int = 256
    """Of those from one IP address: what a rack behind one router opens when a relay comes back."""

    handshake_seconds_max: float = 5.0
    """From accept to the end of Noise and Yamux negotiation; it takes 10 ms on a quiet machine."""

    dial_seconds_max: float = 10.0
    """For all addresses of a peer together, the stream's negotiation included."""

    negotiation_seconds_max: float = 5.0
    """For agreeing on the protocol of one stream: two round trips."""

    write_seconds_max: float = 12.0
    """Without any progress the connection is closed. The link calls a peer dead after as long."""

    inbound_streams_max: int = 80
    """Open streams one peer may have opened: one link, 64 circuits when one of the two is a relay,
    and a few of libp2p's own protocols."""

    unlinked_seconds_max: float = 20.0
    """A connection without a link for so long is closed: who only connects gets nothing."""


HANDSHAKE_BYTES_MAX: Final = 64 * 1024
"""Of one connection, until Noise and Yamux are in place; honest ones take two kilobytes."""

RECEIVE_WINDOW_BYTES: Final = 256 * 1024
"""What Yamux grants every stream at its start."""

RECEIVE_WINDOW_BYTES_MAX: Final = 1024 * 1024
"""What a stream that is read promptly grows to: 10 MB/s over 100 ms."""

UNREAD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Per connection, over all streams: who does not get read must not fill the memory."""

SEND_BUFFER_BYTES_MAX: Final = 256 * 1024
"""Per connection: beyond it writers wait until the peer takes some."""

UNSENT_REPLIES_MAX: Final = 256
"""Answers to pings and refused streams that wait for a peer which does not read: then goodbye."""

STREAM_OPENINGS_PER_SECOND_MAX: Final = 100
"""Per connection. Each costs a task and a negotiation, even if it is reset at once."""

PINGS_PER_SECOND_MAX: Final = 100
"""Per connection. Other implementations send one in thirty seconds."""

EMPTY_FRAMES_PER_SECOND_MAX: Final = 50_000
"""Per connection: frames without payload, window updates above all. libp2p's own Yamux sends one
for nearly every read, which comes to 10,000."""

SEND_WINDOW_BYTES_MAX: Final = 1 << 31
"""More credit than this is nobody's honest window."""
