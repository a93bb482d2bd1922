"""The life of a request as a dialogue, from both ends: answers, errors, cancels."""

from __future__ import annotations

import pytest

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import ContentType, Endpoint, FinishReason
from aimo_node.errors import (
    CODED_ERRORS,
    EngineFailed,
    InvalidRequest,
    LocalProtocolError,
    Overloaded,
    PayloadTooLarge,
    UnsupportedContentType,
)
from aimo_node.protocol import codec, limits
from aimo_node.protocol.asking import Terms
from aimo_node.protocol.events import (
    LinkClosed,
    PartReceived,
    RequestFailed,
    RequestReceived,
    RequestWithdrawn,
)
from aimo_node.protocol.frames import (
    Accepted,
    Cancel,
    Error,
    Request,
)
from tests.unit.protocol.spoken import FINISH, request
from tests.unit.protocol.two_ends import Played, TwoEnds, is_clean, request_id

FRAME = limits.CREDIT_FRAME_BYTES


def test_a_streamed_answer_from_admission_to_receipt() -> None:
    ends = TwoEnds()
    rid = ends.open(1, b'{"model":"tiny"}')
    ends.settle()
    (received,) = ends.at_provider
    assert isinstance(received, RequestReceived)
    assert received.body == b'{"model":"tiny"}'
    assert received.request.stream
    assert received.request.deadline_ms == 30_000
    answering = ends.provider.answering
    answering.accept(rid, b"digest", 2)
    answering.send_text(rid, "Hel")
    answering.send_text(rid, "lö")
    answering.send_json(rid, b'[{"delta":{}}]')
    answering.finish(rid, FINISH)
    ends.settle()
    assert ends.at_edge == [
        Accepted(rid, b"digest", 2),
        PartReceived(rid, "Hel", 3 + FRAME),
        PartReceived(rid, "lö", 3 + FRAME),
        PartReceived(rid, JsonDelta(b'[{"delta":{}}]'), 14 + FRAME),
        PartReceived(rid, FINISH, 0),
    ]
    assert ends.is_clean()


def test_a_whole_answer() -> None:
    ends = TwoEnds()
    rid = ends.accepted(stream=False)
    ends.at_edge.clear()
    ends.provider.answering.respond(rid, ContentType.JSON, b"[1]", FINISH)
    ends.settle()
    assert ends.at_edge == [PartReceived(rid, JsonDelta(b"[1]"), 0), PartReceived(rid, FINISH, 0)]
    assert ends.is_clean()


def test_a_large_whole_answer_comes_in_pieces_and_arrives_as_one() -> None:
    ends = TwoEnds()
    rid = ends.accepted(stream=False)
    ends.at_edge.clear()
    body = bytes(range(256)) * 4_096
    ends.provider.answering.respond(rid, ContentType.JSON, body, FINISH)
    assert ends.provider.answering.requests
    ends.settle()
    assert ends.at_edge == [PartReceived(rid, JsonDelta(body), 0), PartReceived(rid, FINISH, 0)]
    assert ends.is_clean()


def test_an_answer_over_the_largest_body_is_refused_here() -> None:
    ends = TwoEnds()
    rid = ends.accepted(stream=False)
    with pytest.raises(PayloadTooLarge):
        ends.provider.answering.respond(
            rid, ContentType.JSON, bytes(limits.BODY_BYTES_MAX + 1), FINISH
        )
    with pytest.raises(PayloadTooLarge):
        ends.provider.answering.send_json(rid, bytes(limits.PAYLOAD_BYTES_MAX + 1))
    ends.provider.answering.fail(rid, EngineFailed("too much"))
    ends.settle()
    assert ends.is_clean()


@pytest.mark.parametrize("kind", CODED_ERRORS.values())
def test_every_coded_error_travels(kind: type) -> None:
    ends = TwoEnds()
    rid = ends.open()
    ends.settle()
    ends.provider.answering.fail(
        rid, kind("no", param="messages[0].content", retry_after_seconds=1.5)
    )
    ends.settle()
    (event,) = ends.at_edge
    assert isinstance(event, RequestFailed)
    assert type(event.error) is kind
    assert event.error.message == "no"
    assert event.error.param == "messages[0].content"
    assert event.error.retry_after_seconds == 1.5
    assert ends.is_clean()


def test_a_code_of_a_newer_version_counts_as_a_failed_engine() -> None:
    played = Played()
    rid = played.asks()
    (event,) = played.hears(Error(60_000, "?", {"retry_after_ms": "soon", "more": "x"}, rid))
    assert isinstance(event, RequestFailed)
    assert type(event.error) is EngineFailed
    assert event.error.retry_after_seconds is None


@pytest.mark.parametrize("advice", ["9" * 128, "\N{ARABIC-INDIC DIGIT NINE}" * 30])
def test_absurd_advice_to_wait_is_cut_to_a_day(advice: str) -> None:
    played = Played()
    rid = played.asks()
    (event,) = played.hears(Error(9, "full", {"retry_after_ms": advice}, rid))
    assert isinstance(event, RequestFailed)
    assert event.error.retry_after_seconds == limits.RETRY_AFTER_SECONDS_MAX


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (float("inf"), "86400000"),
        (float("nan"), "0"),
        (-1.0, "0"),
        (0.0004, "0"),
        (1e9, "86400000"),
    ],
)
def test_an_error_always_fits_its_frame(seconds: float, said: str) -> None:
    """An engine's message may be long or hold half a surrogate pair; failing must not fail."""
    ends = TwoEnds()
    rid = ends.open()
    ends.settle()
    error = Overloaded("\ud83d" * 5_000, param="p" * 5_000, retry_after_seconds=seconds)
    ends.provider.answering.fail(rid, error)
    (frame,) = codec.FrameReader().feed(ends.provider.take_output())
    assert isinstance(frame, Error)
    assert len(frame.message) == limits.MESSAGE_CHARS_MAX
    assert frame.details == {"param": "p" * limits.DETAIL_CHARS_MAX, "retry_after_ms": said}


def test_an_error_drops_what_waits_for_credit_but_not_what_is_on_its_way() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.at_edge.clear()
    answering = ends.provider.answering
    answering.send_json(rid, b"[" + b" " * 60_000 + b"]")
    answering.send_text(rid, "waits")
    assert answering.backlog_bytes(rid) == 5 + FRAME
    answering.fail(rid, EngineFailed("died"))
    assert answering.backlog_bytes(rid) == 0
    ends.settle()
    assert [type(event) for event in ends.at_edge] == [PartReceived, RequestFailed]
    assert ends.is_clean()


def test_a_cancel_stops_the_provider_and_says_how_much_arrived() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.provider.answering.send_text(rid, "one")
    ends.provider.answering.send_text(rid, "two")
    ends.settle()
    ends.provider.answering.send_text(rid, "never sent")
    ends.at_provider.clear()
    ends.edge.asking.cancel(rid)
    ends.to_provider()
    assert ends.at_provider == [RequestWithdrawn(rid, 2)]
    assert ends.is_clean()


def test_after_a_cancel_nothing_of_the_request_is_reported() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.at_edge.clear()
    ends.provider.answering.send_text(rid, "crosses the cancel")
    ends.edge.asking.cancel(rid)
    ends.edge.asking.cancel(rid)
    ends.settle()
    ends.provider.answering.finish(rid, FINISH)
    ends.provider.answering.respond(rid, ContentType.TEXT, b"late", FINISH)
    assert not ends.provider.answering.send_text(rid, "late")
    assert not ends.provider.answering.send_json(rid, b"[]")
    ends.settle()
    assert ends.at_edge == []
    assert ends.is_clean()


def test_a_request_cancelled_before_it_left_never_leaves() -> None:
    played = Played()
    rid = played.asks()
    played.session.asking.cancel(rid)
    assert played.says() == []
    assert is_clean(played.session)


def test_a_cancel_that_meets_the_end_of_the_answer_is_ignored() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.provider.answering.finish(rid, FINISH)
    ends.edge.asking.cancel(rid)
    ends.settle()
    assert not ends.provider.closed
    assert ends.is_clean()


def test_accepting_a_request_that_was_just_withdrawn_is_no_mistake() -> None:
    """Request and Cancel may come in one piece: the task that serves it starts a little later."""
    played = Played()
    events = played.hears(request(), Cancel(request_id(1), 0))
    assert [type(event) for event in events] == [RequestReceived, RequestWithdrawn]
    played.session.answering.accept(request_id(1), b"", 0)
    assert played.says() == []


def test_a_request_id_may_not_be_used_twice_at_a_time() -> None:
    played = Played()
    played.asks(7)
    with pytest.raises(LocalProtocolError):
        played.asks(7)
    assert isinstance(played.hears(request(1), request(1))[-1], LinkClosed)

    played = Played()
    played.asks(7)
    (event,) = played.hears(request(7))
    assert isinstance(event, LinkClosed)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (request(content_type=0), UnsupportedContentType),
        (request(content_type=200), UnsupportedContentType),
        (request(request_type=2), InvalidRequest),
    ],
)
def test_what_this_version_does_not_know_is_refused_without_ending_the_link(
    frame: Request, kind: type
) -> None:
    played = Played()
    assert played.hears(frame) == []
    (said,) = played.says()
    assert isinstance(said, Error)
    assert said.error_code == kind.code
    assert is_clean(played.session)


@pytest.mark.parametrize(
    ("count", "sent"), [(-5, 0), (2**32, 2**32 - 1), (2**80, 2**32 - 1), (7, 7)]
)
def test_counts_of_an_engine_always_fit(count: int, sent: int) -> None:
    """One wrong count of one engine must not end the link for everybody on it."""
    ends = TwoEnds()
    rid = ends.accepted()
    ends.provider.answering.finish(rid, Finish(FinishReason.STOP, Usage(count, count, count)))
    ends.settle()
    part = ends.at_edge[-1]
    assert isinstance(part, PartReceived)
    assert part.part == Finish(FinishReason.STOP, Usage(sent, sent, sent))


def test_a_queue_position_always_fits_and_a_digest_is_checked_here() -> None:
    ends = TwoEnds()
    rid = ends.open()
    ends.settle()
    with pytest.raises(LocalProtocolError):
        ends.provider.answering.accept(rid, bytes(limits.DIGEST_BYTES_MAX + 1), 0)
    ends.provider.answering.accept(rid, b"", 2**40)
    ends.settle()
    assert ends.at_edge == [Accepted(rid, b"", 2**32 - 1)]


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        (Terms(1, {f"x-{n}": "" for n in range(17)}), InvalidRequest),
        (Terms(1, {"x" * 33: ""}), InvalidRequest),
        (Terms(1, {"x": "v" * 97}), InvalidRequest),
        (Terms(1, {"x": "\ud800"}), InvalidRequest),
        (Terms(1, {}, "p" * 65), LocalProtocolError),
        (Terms(1, {}, "\ud800"), LocalProtocolError),
    ],
)
def test_a_request_that_no_peer_would_take_fails_alone(terms: Terms, error: type) -> None:
    played = Played()
    with pytest.raises(error):
        played.session.asking.open(request_id(1), Endpoint.CHAT, b"", stream=True, terms=terms)
    assert is_clean(played.session)


@pytest.mark.parametrize(("deadline", "sent"), [(-1, 0), (2**33, 2**32 - 1)])
def test_a_deadline_always_fits(deadline: int, sent: int) -> None:
    played = Played()
    terms = Terms(deadline, {"x-a": "ü" * 96})
    played.session.asking.open(request_id(1), Endpoint.CHAT, b"", stream=True, terms=terms)
    (frame,) = played.says()
    assert isinstance(frame, Request)
    assert frame.deadline_ms == sent


def test_half_a_surrogate_pair_does_not_stop_an_answer() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.at_edge.clear()
    ends.provider.answering.send_text(rid, "a\ud83d")
    ends.settle()
    assert ends.at_edge == [PartReceived(rid, "a?", 2 + FRAME)]


def test_long_text_is_cut_between_characters() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    ends.at_edge.clear()
    text = "aé" + "\N{GRINNING FACE}" * 3_000
    ends.provider.answering.send_text(rid, text)
    ends.settle()
    parts = [event.part for event in ends.at_edge if isinstance(event, PartReceived)]
    assert len(parts) == 2
    assert "".join(str(part) for part in parts) == text


@pytest.mark.parametrize("step", ["send", "finish", "respond", "accept"])
def test_an_answer_out_of_order_is_a_bug_of_ours(step: str) -> None:
    ends = TwoEnds()
    rid = ends.open()
    ends.settle()
    answering = ends.provider.answering
    if step == "accept":
        answering.accept(rid, b"", 0)
    with pytest.raises(LocalProtocolError):
        {
            "send": lambda: answering.send_text(rid, "x"),
            "finish": lambda: answering.finish(rid, FINISH),
            "respond": lambda: answering.respond(rid, ContentType.TEXT, b"", FINISH),
            "accept": lambda: answering.accept(rid, b"", 0),
        }[step]()


def test_nothing_follows_the_final_chunk() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    answering = ends.provider.answering
    answering.send_json(rid, b" " * 60_000)
    answering.send_text(rid, "waits")
    answering.finish(rid, FINISH)
    for step in (lambda: answering.send_text(rid, "x"), lambda: answering.finish(rid, FINISH)):
        with pytest.raises(LocalProtocolError):
            step()


def test_a_backlog_over_its_bound_is_reported() -> None:
    ends = TwoEnds()
    rid = ends.accepted()
    answering = ends.provider.answering
    sent = 0
    while not answering.send_text(rid, "x" * 8_000):
        sent += 1
    assert (
        limits.BACKLOG_BYTES_MAX < answering.backlog_bytes(rid) < limits.BACKLOG_BYTES_MAX + 9_000
    )
    assert answering.send_json(rid, b"[]")
    assert answering.backlog_bytes(request_id(99)) == 0
