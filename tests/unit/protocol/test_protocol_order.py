"""A peer that breaks the order of frames ends the link; what merely crosses is ignored."""

from __future__ import annotations

import pytest

from aimo_node.domain.answer import Finish
from aimo_node.errors import CloseCode
from aimo_node.protocol.events import LinkClosed, PartReceived, RequestFailed
from aimo_node.protocol.frames import (
    Accepted,
    Body,
    Cancel,
    Credit,
    Error,
    Frame,
    StreamChunk,
)
from tests.unit.protocol.spoken import ACCEPTED, chunk, final, request, response
from tests.unit.protocol.two_ends import Played, is_clean, request_id

ANSWERED: list[Frame] = [ACCEPTED, chunk(0)]


@pytest.mark.parametrize(
    "frames",
    [
        [chunk(0)],
        [final(0)],
        [response()],
        [ACCEPTED, ACCEPTED],
        [ACCEPTED, chunk(1)],
        [ACCEPTED, chunk(2**32 - 1)],
        [*ANSWERED, chunk(0)],
        [*ANSWERED, chunk(2)],
        [*ANSWERED, final(0)],
        [*ANSWERED, final(2)],
        [*ANSWERED, final(1, payload=b"x")],
        [*ANSWERED, final(1, finish_reason=0)],
        [*ANSWERED, final(1, finish_reason=99)],
        [*ANSWERED, response()],
        [*ANSWERED, ACCEPTED],
        [ACCEPTED, chunk(0, b"\xff")],
        [ACCEPTED, chunk(0, content_type=9)],
        [ACCEPTED, response(b"\xff", content_type=0)],
        [ACCEPTED, response(finish_reason=77)],
        [ACCEPTED, response(b"x", body_bytes=20_000)],
        [ACCEPTED, response(b"", body_bytes=20_000), chunk(0)],
        [ACCEPTED, response(b"", body_bytes=20_000), final(0)],
        [ACCEPTED, response(b"", body_bytes=20_000), response()],
        [ACCEPTED, Body(request_id(1), 0, b"x", last=True)],
        [*ANSWERED, Body(request_id(1), 0, b"x", last=True)],
        [ACCEPTED, response(b"", body_bytes=9), Body(request_id(1), 1, b"x", last=False)],
        [ACCEPTED, response(b"", body_bytes=9), Body(request_id(1), 0, b"x", last=True)],
        [ACCEPTED, response(b"", body_bytes=2), Body(request_id(1), 0, b"xy", last=False)],
        [ACCEPTED, response(b"", body_bytes=2), Body(request_id(1), 0, b"xyz", last=True)],
        [ACCEPTED, Credit(request_id(1), 1, 0)],
    ],
)
def test_a_provider_that_breaks_the_order_of_an_answer_ends_the_link(frames: list[Frame]) -> None:
    played = Played()
    played.asks()
    events = played.hears(*frames)
    assert isinstance(events[-1], LinkClosed)
    assert events[-1].close_code is CloseCode.ProtocolViolation
    assert not any(isinstance(event, Finish) for event in events)
    played.says()
    assert is_clean(played.session)


@pytest.mark.parametrize(
    "frames",
    [
        [*ANSWERED, final(1), final(1)],
        [*ANSWERED, final(1), chunk(2)],
        [Error(9, "", {}, request_id(1)), ACCEPTED],
    ],
)
def test_what_comes_after_the_end_of_a_request_is_ignored(frames: list[Frame]) -> None:
    """It looks just like what crosses a Cancel."""
    played = Played()
    played.asks()
    ends = [
        event
        for event in played.hears(*frames)
        if isinstance(event, RequestFailed)
        or (isinstance(event, PartReceived) and isinstance(event.part, Finish))
    ]
    assert len(ends) == 1
    assert not played.session.closed


@pytest.mark.parametrize(
    "frame",
    [
        Accepted(request_id(9)),
        StreamChunk(request_id(9), 3, 0, b"x"),
        response(request_id=request_id(9)),
        Error(9, "", {}, request_id(9)),
        Body(request_id(9), 0, b"x", last=True),
        Credit(request_id(9), 1, 0),
        Cancel(request_id(9), 0),
    ],
)
def test_frames_of_requests_nobody_knows_are_ignored(frame: Frame) -> None:
    played = Played()
    assert played.hears(frame) == []
    assert played.says() == []


@pytest.mark.parametrize("index", [2, 2**32 - 1])
def test_an_edge_cannot_acknowledge_what_was_never_sent(index: int) -> None:
    for frame in (Credit(request_id(1), 1, index), Cancel(request_id(1), index)):
        played = Played()
        played.hears(request())
        played.session.answering.accept(request_id(1), b"", 0)
        played.session.answering.send_text(request_id(1), "x")
        assert isinstance(played.hears(frame)[-1], LinkClosed)


def test_an_edge_cannot_take_an_acknowledgement_back() -> None:
    """What was acknowledged is billed."""
    for frame in (Credit(request_id(1), 1, 0), Cancel(request_id(1), 0)):
        played = Played()
        played.hears(request())
        played.session.answering.accept(request_id(1), b"", 0)
        played.session.answering.send_text(request_id(1), "x")
        played.hears(Credit(request_id(1), 1, 1))
        assert isinstance(played.hears(frame)[-1], LinkClosed)
