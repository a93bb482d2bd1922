"""Every bound of the wire, with its reason. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
VERSIONS_SUPPORTED: Final = (1,)

LENGTH_PREFIX_BYTES: Final = 4
PAYLOAD_BYTES_MAX: Final = 65_536
"""A frame's payload: one JSON delta, one Directory batch. Larger things travel as Body frames."""
ENVELOPE_BYTES_MAX: Final = 2_048
"""What a frame may hold besides its payload; headers of a Request are the largest part."""
FRAME_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX
HELLO_BYTES_MAX: Final = 4_096
"""Read from a stranger, so small."""
WRITE_BYTES_MAX: Final = 64_000
"""One write: below the 65,535 of a Noise message with Yamux' header, so it stays one message."""

INLINE_BYTES_MAX: Final = 16_384
"""A request or answer up to this size travels inside its frame, a larger one as Body frames."""
BODY_PIECE_BYTES: Final = 16_384
TEXT_PIECE_BYTES: Final = 8_192
"""Longer text deltas are cut, so that one request's text never holds up the others for long."""
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
UPLOADS_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bodies being received over one link at a time, by their declared size; each direction apart."""

CREDIT_FRAME_BYTES: Final = 32
"""What a frame that is under credit costs beside its payload. It holds about as much memory at the
receiver besides, so a flood of tiny or empty chunks is bounded as well."""
CREDIT_INITIAL_BYTES: Final = 16_384
CREDIT_WINDOW_BYTES_MAX: Final = 256 * 1024
CREDIT_GROWTH_WINDOWS: Final = 2
"""A window doubles after so many of it: 256 KiB after half a megabyte, and an answer of 50 tokens a
second keeps its first one for a quarter of a minute."""
CREDIT_LINK_BYTES_MAX: Final = 32 * 1024 * 1024
"""All windows a node has open on one link: the most a peer can make it buffer."""
CREDIT_GROWTH_RESERVE_BYTES: Final = CREDIT_LINK_BYTES_MAX // 2
"""Windows grow only while this much of a link is free, so that fast streams leave room for new
ones: 1,024 requests always find their first window."""
CREDIT_LONE_BYTES: Final = CREDIT_INITIAL_BYTES // 2
"""A frame that costs more than the credit left may go if at least this much is left: windows are
topped up at half, so this much is free whenever nothing is outstanding, and no frame can wait for
ever."""
BACKLOG_BYTES_MAX: Final = 1024 * 1024
"""What an engine that cannot be held back may queue for one slow consumer."""
STALL_SECONDS: Final = 60.0
"""A consumer that takes nothing for so long is given up."""

REQUESTS_PER_LINK_MAX: Final = CREDIT_LINK_BYTES_MAX // CREDIT_INITIAL_BYTES
"""2,048: each request needs its first window."""
ENDED_REQUESTS_MAX: Final = 1_024
"""Ids of ended requests remembered, so that one used again cannot be taken for the one before it
while that is still being cleared away: more than fit into one read."""
CONTROL_BYTES_MAX: Final = 1024 * 1024
"""Control frames waiting to be written; a peer that reads nothing while it asks is cut off."""
ANNOUNCEMENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Announcements waiting to be written: the whole directory of a large mesh."""
OUTBOX_BYTES_MAX: Final = 2 * CREDIT_LINK_BYTES_MAX
"""Frames of requests waiting to be written. Credit keeps an honest peer far below; beyond it, a
peer starts nothing new and may not grant credit, since it does not read what it asks for."""
OUTBOX_REQUESTS_MAX: Final = 2 * REQUESTS_PER_LINK_MAX
"""Requests with frames waiting to be written, also those that have ended here."""
QUANTUM_BYTES: Final = 16_384
"""Deficit round robin: what one request may send before the next one's turn."""

HELLO_SECONDS: Final = 5.0
PING_SECONDS: Final = 1.5
SUSPECT_SECONDS: Final = 4.5
DEAD_SECONDS: Final = 12.0
"""Three missed pings make a peer suspect, eight dead; a pause of garbage collection does not."""
MEASURE_SECONDS: Final = 10.0
"""A link that is never silent is pinged so often, for its round trip: 26 bytes are no load."""

HEADERS_MAX: Final = 16
HEADER_NAME_CHARS_MAX: Final = 32
HEADER_VALUE_CHARS_MAX: Final = 96
MESSAGE_CHARS_MAX: Final = 1_024
DETAILS_MAX: Final = 8
DETAIL_CHARS_MAX: Final = 128
NAME_CHARS_MAX: Final = 256
PEER_ID_CHARS_MAX: Final = 64
PUBLIC_ID_CHARS_MAX: Final = 64
AGENT_CHARS_MAX: Final = 64
DIGEST_BYTES_MAX: Final = 64
PROOF_BYTES_MAX: Final = 2_048
"""Room for a membership certificate."""
SIGNATURE_BYTES: Final = 64
RECEIPT_BYTES_MAX: Final = 1_024
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0
"""A longer advice is cut to a day: what a peer says must fit an HTTP header."""

DESCRIPTOR_BYTES_MAX: Final = 16_384
DESCRIPTOR_MODELS_MAX: Final = 64
DESCRIPTOR_ENGINES_MAX: Final = 16
DESCRIPTOR_ADDRESSES_MAX: Final = 16
ADDRESS_CHARS_MAX: Final = 256
HEARTBEAT_BYTES_MAX: Final = 128
HEARTBEAT_SECONDS: Final = 5.0
DESCRIPTOR_SECONDS: Final = 600.0
DIRECTORY_SECONDS: Final = 1.0
DIRECTORY_BYTES_MAX: Final = 58_000
"""One batch: with its envelope it also fits a gossip message."""
DIRECTORY_ENTRIES_MAX: Final = 1_024
DIRECTORY_RELAYS_MAX: Final = 16
"""Relays of one mesh that know each other: each is linked to all."""
RELAY_BYTES_MAX: Final = 2_048
RELAY_ADDRESSES_MAX: Final = 4
SUBSCRIBE_MODELS_MAX: Final = 256

GOSSIP_BYTES_MAX: Final = 60_000
GOSSIP_OLDEST_SECONDS: Final = 90.0
GOSSIP_NEWEST_SECONDS: Final = 40.0
"""A MessageFrame's timestamp must lie in this window around the receiver's clock."""
