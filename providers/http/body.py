"""Cuts HTTP/1.1 bodies out of a byte stream, sans-I/O: by length, in chunks, or until it closes.

Written by hand for the one hot place, tokens from an engine's socket: a general parser costs as
much per token as everything else together.
"""

from __future__ import annotations

from typing import Final, Protocol

from aimo_node.errors import EngineFailed

CHUNK_LINE_BYTES_MAX: Final = 256
"""A chunk's size line; real ones have at most eight digits and no extension."""

CHUNK_BYTES_MAX: Final = 1 << 31

TRAILER_BYTES_MAX: Final = 16_384
"""What may follow the last chunk; h11's bound for a whole head."""

_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")

_LENGTHS: Final = {
    line: length
    for length in range(1, 1024)
    for line in (b"%x" % length, b"%X" % length, b"%04x" % length, b"%04X" % length)
}
"""Short chunks, the size of a token, by their size line."""


class BodyDecoder(Protocol):
    """Takes what arrives, gives what is body."""

    done: bool
    """True once the whole body has been given; what follows is not part of it."""

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`, maybe none.

        Raises:
            EngineFailed: not HTTP.
        """

    def close(self) -> None:
        """The stream has ended.

        Raises:
            EngineFailed: in the middle of the body.
        """


class ChunkedBody:
    """``transfer-encoding: chunked``."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""
        self._chunk_left = 0
        self._in_chunk = False
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        if self._rest:
            data = self._rest + data
        elif not (self._in_chunk or self._in_trailer) and data[-2:] == b"\r\n":
            # The usual case, one token: one whole chunk and nothing else.
            line, _, chunk = data.partition(b"\r\n")
            if len(chunk) > 2 and _LENGTHS.get(line) == len(chunk) - 2:
                return chunk[:-2]
        pieces: list[bytes] = []
        position = 0
        while not self.done:
            start = position
            if self._in_chunk:
                position = self._take_chunk(data, position, pieces)
            elif self._in_trailer:
                position = self._take_trailer(data, position)
            else:
                position = self._take_size(data, position)
            if position == start:
                break
        self._rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """See `BodyDecoder`."""
        if not self.done:
            raise EngineFailed("the engine closed the connection in the middle of its answer")

    def _take_chunk(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        if self._chunk_left:
            piece = data[position : position + self._chunk_left]
            if piece:
                pieces.append(piece)
                self._chunk_left -= len(piece)
            return position + len(piece)
        ending = data[position : position + 2]
        if ending == b"\r\n":
            self._in_chunk = False
            return position + 2
        if not b"\r\n".startswith(ending):
            raise EngineFailed("the engine's answer is not valid HTTP: a chunk is too long")
        return position

    def _take_size(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position, position + CHUNK_LINE_BYTES_MAX)
        if end < 0:
            if len(data) - position >= CHUNK_LINE_BYTES_MAX:
                raise EngineFailed("the engine's answer is not valid HTTP: no chunk size")
            return position
        digits = data[position:end].partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > 16 or not _HEX_DIGITS.issuperset(digits):
            raise EngineFailed("the engine's answer is not valid HTTP: no chunk size")
        self._chunk_left = int(digits, 16)
        if self._chunk_left > CHUNK_BYTES_MAX:
            raise EngineFailed("the engine's answer is not valid HTTP: a chunk is too long")
        self._in_chunk = self._chunk_left > 0
        self._in_trailer = not self._in_chunk
        return end + 2

    def _take_trailer(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position, position + TRAILER_BYTES_MAX)
        if end < 0:
            if len(data) - position >= TRAILER_BYTES_MAX:
                raise EngineFailed("the engine's answer is not valid HTTP: endless trailers")
            return position
        self.done = end == position
        return end + 2


class SizedBody:
    """``content-length: N``."""

    def __init__(self, content_length: int) -> None:
        self._left = content_length
        self.done = not content_length

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        body = data[: self._left]
        self._left -= len(body)
        self.done = not self._left
        return body

    def close(self) -> None:
        """See `BodyDecoder`."""
        if not self.done:
            raise EngineFailed("the engine closed the connection in the middle of its answer")


class UnsizedBody:
    """Neither: the body ends where the stream ends."""

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        return data

    def close(self) -> None:
        """See `BodyDecoder`."""
        self.done = True
