"""Yamux frames as bytes: https://github.com/hashicorp/yamux/blob/master/spec.md."""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES_MAX
from aimo_node.mesh.fixes.noise_messages import PLAINTEXT_BYTES_MAX

HEADER: Final = Struct("!BBHII")
"""Version, kind, flags, stream id, length."""

HEADER_BYTES: Final = HEADER.size
PAYLOAD_BYTES_MAX: Final = PLAINTEXT_BYTES_MAX - HEADER_BYTES
"""The most one frame carries here, so that it fits into one Noise message."""

PAYLOAD_BYTES_ACCEPTED_MAX: Final = RECEIVE_WINDOW_BYTES_MAX
"""The most a peer may put into one frame: a whole window."""

VERSION: Final = 0
DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8


class GoAwayCode(enum.IntEnum):
    """Why a connection ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


def data(stream_id: int, payload: bytes) -> bytes:
    """A DATA frame of at most `PAYLOAD_BYTES_MAX` bytes."""
    return HEADER.pack(VERSION, DATA, 0, stream_id, len(payload)) + payload


def window_update(stream_id: int, credit: int, flags: int = 0) -> bytes:
    """A WINDOW_UPDATE frame granting `credit` more bytes."""
    return HEADER.pack(VERSION, WINDOW_UPDATE, flags, stream_id, credit)


def finish(stream_id: int) -> bytes:
    """The frame that ends one direction of a stream."""
    return window_update(stream_id, 0, FIN)


def reset(stream_id: int) -> bytes:
    """The frame that ends a stream at once."""
    return window_update(stream_id, 0, RST)


def pong(value: int) -> bytes:
    """The answer to a PING."""
    return HEADER.pack(VERSION, PING, ACK, 0, value)


def go_away(code: GoAwayCode) -> bytes:
    """The last frame of a connection."""
    return HEADER.pack(VERSION, GO_AWAY, 0, 0, code)
