"""Bytes become frames or the protocol error, whatever their cut."""

from __future__ import annotations

import struct

import pytest

from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import codec, frames, limits
from aimo_node.protocol.frames import (
    DescriptorBody,
    FrameType,
    GoAway,
    Hello,
    Limits,
    MessageBody,
    MessageFrame,
    Ping,
    StreamChunk,
    Subscribe,
    clamp_unsigned32,
)

PEER = "12D3KooWProvider"


def test_a_frame_is_a_length_and_an_array_that_starts_with_its_type() -> None:
    assert codec.encode(Ping(5)) == b"\x00\x00\x00\x03\x92\x0b\x05"
    assert codec.encode_bare(Ping(5)) == b"\x92\x0b\x05"
    assert codec.decode(b"\x92\x0b\x05") == Ping(5)


def test_what_a_newer_version_appends_is_ignored() -> None:
    """Whatever it is: also what this version could not send itself."""
    for extra in (
        b"\x01",
        b"\xc0",
        b"\x81\xa1a\x91\xc3",
        b"\xd4\x05\x00",
        b"\xc7\x0c\xff" + b"\xff" * 12,
    ):
        assert codec.decode(b"\x93\x0b\x05" + extra) == Ping(5)


def test_trailing_fields_may_be_left_out() -> None:
    short = codec._encode(codec.TextChunk(bytes(16), 7, 0, b"hi"))
    assert codec.decode(short) == StreamChunk(bytes(16), 7, 0, b"hi")
    assert len(short) < len(codec.encode_bare(StreamChunk(bytes(16), 7, 0, b"hi")))
    assert codec.decode(b"\x91\x0e") == Subscribe([])


@pytest.mark.parametrize(
    "head",
    [
        b"\x91\x00",
        b"\x91\x12",
        b"\x91\x7f",
        b"\xdc\x00\x01\x13",
        b"\xdd\x00\x00\x00\x01\x63",
        b"\x91\xcc\xc8",
        b"\x91\xcd\x01\x00",
        b"\x91\xce\xff\xff\xff\xff",
        b"\x91\xcf" + b"\xff" * 8,
    ],
)
def test_an_unknown_type_has_a_close_code_of_its_own(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(head)
    assert caught.value.close_code is CloseCode.UnknownFrame


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x80",
        b"\xdc",
        b"\x91\xe0",
        b"\x91\xa1a",
        b"\x91\xd4\x01\x05",
        b"\x92\x0b\x05\x00",
        b"\x92\x0b\xc3",
        b"\x92\x0b\xc0",
        b"\x92\x0b\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
        b"\x92\x0b\xcf" + b"\xff" * 8,
        b"\x92\x0b\xff",
        b"\x91\x0b",
        b"\x92\x0e\xdd\xff\xff\xff\xff",
        b"\x92\x0e\xdd\xff\xff\xff\xff\xa1a",
        b"\x95\x04\x01\xa0\xdf\xff\xff\xff\xff",
        b"\x93\x0f\xc6\xff\xff\xff\xffabc",
        b"\xdd\xff\xff\xff\xff\x0b\x05",
        b"\x93\x0e\x90\xdd\xff\xff\xff\xff",
        b"\x93\x0e\x90" + b"\x91" * 65_000,
        b"\x93\x0e\x90" + b"\x81\x01" * 30_000,
        b"\x93\x0d\x01\xa1\xff",
        b"\x93\x0d\x01\xa3\xed\xa0\x80",
        b"\x93\x0d\x01\xc4\x01a",
        b"\x95\x04\x01\xa0\x81\xa1\xff\xa1b\xc4\x10" + bytes(16),
        b"\x95\x03\xc4\x0f" + bytes(15) + b"\x00\x00\xc4\x00",
        b"\x92\x10\x01",
        b"\x92\x05" + b"\x00" * 8,
    ],
)
def test_malformed_bytes_give_the_protocol_error(data: bytes) -> None:
    """Lengths that promise gigabytes are refused before anything is allocated for them."""
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(data)
    assert caught.value.close_code is CloseCode.ProtocolViolation


def test_the_size_of_the_pieces_does_not_matter() -> None:
    frames = [Ping(n) for n in range(20)] + [
        GoAway(0, "x" * 1_000),
        StreamChunk(bytes(16), 0, 1, bytes(65_536)),
    ]
    data = b"".join(codec.encode(frame) for frame in frames)
    for size in (1, 2, 3, 7, 1_000, len(data)):
        reader = codec.FrameReader()
        seen = []
        for start in range(0, len(data), size):
            seen += list(reader.feed(data[start : start + size]))
        assert seen == frames


def test_a_frame_of_the_largest_size_is_taken_and_one_byte_more_is_not() -> None:
    reader = codec.FrameReader()
    assert list(reader.feed(struct.pack(">I", limits.FRAME_BYTES_MAX))) == []
    with pytest.raises(RemoteProtocolError) as caught:
        list(codec.FrameReader().feed(struct.pack(">I", limits.FRAME_BYTES_MAX + 1)))
    assert caught.value.close_code is CloseCode.FrameTooLarge


def test_an_empty_frame_is_malformed() -> None:
    with pytest.raises(RemoteProtocolError):
        list(codec.FrameReader().feed(bytes(4)))


def test_the_largest_frames_fit() -> None:
    chunk = StreamChunk(bytes(16), 2**32 - 1, 1, bytes(limits.PAYLOAD_BYTES_MAX))
    assert len(codec.encode(chunk)) - 4 <= limits.FRAME_BYTES_MAX
    (read,) = codec.FrameReader().feed(codec.encode(chunk))
    assert read == chunk


def test_signed_parts_are_read_back() -> None:
    body = MessageBody(5, bytes(16), 1_753_000_000_000, PEER, "", b"\x92\x0b\x05")
    assert codec.decode_part(codec.encode_part(body), MessageBody) == body
    message = MessageFrame(1, codec.encode_part(body), bytes(64))
    assert codec.decode_part(codec.encode_part(message), MessageFrame) == message


@pytest.mark.parametrize("kind", [DescriptorBody, MessageBody, MessageFrame])
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\x91" * 5_000, b"\x93\x01\xa1\xff\xc0"])
def test_malformed_parts_give_the_protocol_error(kind: type, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.decode_part(data, kind)


def test_a_message_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode_part(codec.encode_part(MessageFrame(2, b"", bytes(64))), MessageFrame)
    assert caught.value.close_code is CloseCode.VersionMismatch


def test_every_frame_type_has_its_number_and_its_class() -> None:
    for member in FrameType:
        kind = getattr(frames, member.name)
        assert kind.__struct_config__.tag == member.value
    assert {kind.__name__ for kind in frames.Frame.__args__} == set(FrameType.__members__)


def test_limits_of_a_hello_are_at_least_those_of_version_1() -> None:
    for short in (Limits(frame_bytes=limits.FRAME_BYTES_MAX - 1), Limits(credit_bytes=16_383)):
        with pytest.raises(RemoteProtocolError):
            codec.decode(codec.encode_bare(Hello([1], limits=short)))


def test_counts_are_clamped_to_what_a_field_holds() -> None:
    assert [clamp_unsigned32(n) for n in (-1, 0, 7, 2**32 - 1, 2**32)] == [
        0,
        0,
        7,
        2**32 - 1,
        2**32 - 1,
    ]
