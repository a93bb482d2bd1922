"""Frames to bytes and back. Any input gives frames or `RemoteProtocolError`, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits
from aimo_node.protocol.frames import (
    Descriptor,
    DescriptorBody,
    Directory,
    Frame,
    FrameType,
    Heartbeat,
    MessageBody,
    MessageFrame,
    RelayBody,
)

_encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
_decode: Callable[[Any], Frame] = msgspec.msgpack.Decoder(Frame).decode
_DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ARRAY_HEADERS: Final = {0xDC: 3, 0xDD: 5}
_PREFIX: Final = limits.LENGTH_PREFIX_BYTES

Part = TypeVar("Part", DescriptorBody, RelayBody, MessageBody, MessageFrame)


class TextChunk(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """A StreamChunk without its trailing defaults: what nearly every frame is."""

    request_id: bytes
    chunk_index: int
    content_type: int
    payload: bytes


class _PlainDirectory(msgspec.Struct, array_like=True, tag=16, frozen=True, gc=False):
    """A Directory without relays: what nearly every one is, and what all were at first."""

    full: bool
    descriptors: list[Descriptor]
    statuses: list[Heartbeat]
    gone: list[str]


def encode(frame: Frame | TextChunk) -> bytes:
    """The frame with its length in front, ready to be written."""
    body = _encode(_plain(frame) if type(frame) is Directory else frame)
    return len(body).to_bytes(_PREFIX, "big") + body


def encode_bare(frame: Frame) -> bytes:
    """The frame without length: the payload of a MessageFrame."""
    return _encode(_plain(frame) if type(frame) is Directory else frame)


def _plain(frame: Directory) -> Directory | _PlainDirectory:
    if frame.relays:
        return frame
    return _PlainDirectory(frame.full, frame.descriptors, frame.statuses, frame.gone)


def decode(data: bytes | memoryview) -> Frame:
    """One frame from exactly its bytes, without the length.

    Raises:
        RemoteProtocolError: with close code UnknownFrame for a type nobody knows.
    """
    try:
        return _decode(data)
    except _DECODE_ERRORS as error:
        if _is_unknown_type(bytes(data[:8])):
            message = "frame of unknown type"
            raise RemoteProtocolError(message, CloseCode.UnknownFrame) from error
        raise RemoteProtocolError(f"malformed frame: {error}") from error


def _is_unknown_type(head: bytes) -> bool:
    """Whether `head` begins an array whose first element is an integer that is no frame type."""
    if not head or not (0x90 <= head[0] <= 0x9F or head[0] in _ARRAY_HEADERS):
        return False
    start = _ARRAY_HEADERS.get(head[0], 1)
    if len(head) <= start or head[start] > 0x7F:
        return len(head) > start and head[start] in (0xCC, 0xCD, 0xCE, 0xCF)
    return head[start] not in set(FrameType)


def encode_part(part: DescriptorBody | RelayBody | MessageBody | MessageFrame) -> bytes:
    """The opaque bytes of something that is signed, or of the envelope itself."""
    return _encode(part)


_part_decoders = {
    kind: msgspec.msgpack.Decoder(kind).decode
    for kind in (DescriptorBody, RelayBody, MessageBody, MessageFrame)
}


def decode_part(data: bytes, kind: type[Part]) -> Part:
    """Read back what `encode_part` wrote.

    Raises:
        RemoteProtocolError: malformed, or an unknown version of MessageFrame.
    """
    try:
        part = _part_decoders[kind](data)
    except _DECODE_ERRORS as error:
        raise RemoteProtocolError(f"malformed {kind.__name__}: {error}") from error
    if isinstance(part, MessageFrame) and part.version not in limits.VERSIONS_SUPPORTED:
        message = f"MessageFrame version {part.version} is not supported"
        raise RemoteProtocolError(message, CloseCode.VersionMismatch)
    return part  # type: ignore[return-value]  # the table holds one decoder per kind


class FrameReader:
    """Cuts a byte stream into frames, whatever the sizes of the pieces."""

    __slots__ = ("_pending", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int = limits.FRAME_BYTES_MAX) -> None:
        self._pending = b""
        self.frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`, one by one; must be read to its end.

        Raises:
            RemoteProtocolError: a length over `frame_bytes_max`, before anything is allocated
                for it, or a malformed frame.
        """
        if self._pending:
            data = self._pending + data
        view = memoryview(data)
        offset, size = 0, len(data)
        while size - offset >= _PREFIX:
            start = offset + _PREFIX
            length = int.from_bytes(view[offset:start], "big")
            if length > self.frame_bytes_max:
                message = f"frame of {length} bytes, at most {self.frame_bytes_max} are taken"
                raise RemoteProtocolError(message, CloseCode.FrameTooLarge)
            end = start + length
            if end > size:
                break
            offset = end
            yield decode(view[start:end])
        self._pending = data[offset:] if offset < size else b""
