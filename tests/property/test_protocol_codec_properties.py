"""Whatever the bytes: frames or the protocol error, and the cut of the stream does not matter."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_node.domain.ids import Endpoint, PeerId, RequestId
from aimo_node.errors import RemoteProtocolError
from aimo_node.protocol import codec, limits
from aimo_node.protocol.events import LinkClosed
from aimo_node.protocol.frames import (
    Accepted,
    DescriptorBody,
    Hello,
    MessageBody,
    MessageFrame,
    RelayBody,
    Request,
)
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Session
from tests.property.wire_frames import FRAME_KINDS, any_frame, as_array, frames_of, without_defaults
from tests.unit.protocol.two_ends import TERMS, Played, encoded, request_id

KNOWN_ID = request_id(1)
"""Frames drawn at random would never name a request that runs: half of them get its id."""


def naming_a_request(frame: Any) -> Any:
    if "request_id" in frame.__struct_fields__ and frame.request_id[0] < 0x80:
        return msgspec.structs.replace(frame, request_id=KNOWN_ID)
    return frame


spoken_frames = st.lists(any_frame().map(naming_a_request), max_size=12)
cuts = st.lists(st.integers(0, 4_000), max_size=12)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def busy_session() -> Session:
    """A session past Hello that asks and answers the request with the known id."""
    played = Played()
    other = request_id(2)
    played.session.asking.open(KNOWN_ID, Endpoint.CHAT, bytes(50_000), stream=True, terms=TERMS)
    played.hears(Accepted(KNOWN_ID), Request(other, "", 1, 1, 1, b"{}", 0, True, {}, 1_000, ""))
    played.session.answering.accept(RequestId(other), b"", 0)
    played.session.answering.send_text(RequestId(other), "hello")
    return played.session


@pytest.mark.parametrize("kind", FRAME_KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_frame_survives_its_round_trip(kind: type[Any], data: st.DataObject) -> None:
    frame = data.draw(frames_of(kind))
    assert codec.decode(codec.encode_bare(frame)) == frame
    newer = [*as_array(frame), None, {"later": [1]}]
    for written in (as_array(frame), without_defaults(frame), newer):
        assert codec.decode(msgspec.msgpack.encode(written)) == frame


@pytest.mark.parametrize("kind", [DescriptorBody, RelayBody, MessageBody, MessageFrame])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_signed_part_survives_its_round_trip(kind: type[Any], data: st.DataObject) -> None:
    part = data.draw(frames_of(kind))
    if isinstance(part, MessageFrame):
        part = msgspec.structs.replace(part, version=1)
    assert codec.decode_part(codec.encode_part(part), kind) == part


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_frame_or_the_protocol_error(data: bytes) -> None:
    kinds: list[Any] = [DescriptorBody, RelayBody, MessageBody, MessageFrame]
    for read in [codec.decode, *(lambda d, k=kind: codec.decode_part(d, k) for kind in kinds)]:
        with contextlib.suppress(RemoteProtocolError):
            read(data)


@settings(max_examples=300, deadline=None)
@given(any_frame(), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1))
def test_damaged_frames_give_a_frame_or_the_protocol_error(
    frame: Any, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(codec.encode(frame))
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(RemoteProtocolError):
        list(codec.FrameReader().feed(bytes(data)))


@settings(max_examples=200, deadline=None)
@given(st.lists(any_frame(), max_size=8), cuts)
def test_the_cut_of_the_stream_does_not_change_the_frames(
    spoken: list[Any], places: list[int]
) -> None:
    reader = codec.FrameReader()
    seen = []
    for piece in cut(encoded(*spoken), places):
        seen += list(reader.feed(piece))
    assert seen == spoken
    assert len(reader._pending) == 0


def events_of(session: Session, pieces: list[bytes]) -> list[str]:
    """What happened, without what a cut may change: the reason phrase of an error."""
    return [
        f"closed {event.close_code}" if isinstance(event, LinkClosed) else repr(event)
        for piece in pieces
        for event in session.receive_data(piece, 0.0)
    ]


@settings(max_examples=200, deadline=None)
@given(st.booleans(), spoken_frames, st.binary(max_size=40), cuts)
def test_the_cut_of_the_stream_does_not_change_the_events(
    opened: bool, spoken: list[Any], garbage: bytes, places: list[int]
) -> None:
    data = encoded(*spoken) + garbage
    whole, pieces = (
        (busy_session(), busy_session())
        if opened
        else (Played(opened=False).session, Played(opened=False).session)
    )
    assert events_of(whole, [data]) == events_of(pieces, cut(data, places))
    assert whole.state == pieces.state


def survives(session: Session, data: bytes) -> None:
    """Any input gives events; the first violation ends the link, with a GoAway as last output."""
    ended = 0
    for number in range(0, len(data), 97):
        events = session.receive_data(data[number : number + 97], float(number))
        ended += sum(isinstance(event, LinkClosed) for event in events)
    assert ended == session.closed
    written = 0
    while output := session.take_output():
        assert len(output) <= limits.WRITE_BYTES_MAX
        written += len(output)
    if session.closed:
        assert session.next_deadline() == float("inf")
        assert not session.busy
    else:
        assert session.next_deadline() > 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_before_hello_are_survived(data: bytes) -> None:
    survives(Session(Admission(PeerId("us")), PeerId("them"), 0.0), data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), any_frame().map(codec.encode)), max_size=8))
def test_any_bytes_after_hello_are_survived(pieces: list[bytes]) -> None:
    session = Session(Admission(PeerId("us")), PeerId("them"), 0.0)
    survives(session, codec.encode(Hello([1])) + b"".join(pieces))


@settings(max_examples=400, deadline=None)
@given(spoken_frames)
def test_any_frames_in_any_order_are_survived(spoken: list[Any]) -> None:
    survives(busy_session(), encoded(*spoken))
