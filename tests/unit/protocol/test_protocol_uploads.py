"""Bodies over 16 KiB: in pieces, under credit, and never in the way of a Cancel."""

from __future__ import annotations

import pytest

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import ContentType, FinishReason
from aimo_node.errors import CloseCode, Overloaded, PayloadTooLarge
from aimo_node.protocol import limits
from aimo_node.protocol.events import BodyReceived, LinkClosed, RequestFailed, RequestReceived
from aimo_node.protocol.frames import (
    Accepted,
    Body,
    Cancel,
    Credit,
    Error,
    GoAway,
    Request,
    Response,
    UsageCount,
)
from tests.unit.protocol.two_ends import Played, TwoEnds, is_clean, request_id

EIGHT_MEBIBYTES = bytes(range(256)) * (limits.BODY_BYTES_MAX // 256)
PIECE = limits.BODY_PIECE_BYTES


def upload(number: int, size: int) -> Request:
    return Request(request_id(number), "", 1, 1, 1, b"", size, True, {}, 1_000, "")


def piece(offset: int, size: int = PIECE, *, last: bool = False, number: int = 1) -> Body:
    return Body(request_id(number), offset, bytes(size), last)


@pytest.mark.parametrize("size", [limits.INLINE_BYTES_MAX + 1, 3 * PIECE, limits.BODY_BYTES_MAX])
def test_a_large_body_arrives_whole(size: int) -> None:
    ends = TwoEnds()
    body = EIGHT_MEBIBYTES[:size]
    rid = ends.open(1, body)
    ends.settle()
    (received,) = ends.at_provider
    assert isinstance(received, RequestReceived)
    assert received.body is None
    ends.provider.answering.accept(rid, b"", 0)
    ends.settle()
    assert ends.at_provider[-1] == BodyReceived(rid, body)
    ends.provider.answering.finish(rid, Finish(FinishReason.STOP, Usage()))
    ends.settle()
    assert ends.is_clean()


def test_a_body_up_to_16_kib_travels_with_the_request() -> None:
    ends = TwoEnds()
    body = EIGHT_MEBIBYTES[: limits.INLINE_BYTES_MAX]
    ends.open(1, body)
    ends.settle()
    (received,) = ends.at_provider
    assert isinstance(received, RequestReceived)
    assert received.body == body


def test_a_body_over_the_limit_is_refused_here() -> None:
    played = Played()
    with pytest.raises(PayloadTooLarge):
        played.asks(1, EIGHT_MEBIBYTES + b"x")
    assert is_clean(played.session)


def test_nothing_is_uploaded_before_it_was_accepted() -> None:
    ends = TwoEnds()
    ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    assert not ends.edge.has_output


def test_an_upload_never_has_more_on_the_way_than_its_credit() -> None:
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    sent = 0
    while ends.edge.has_output:
        sent += len(ends.edge.take_output())
    assert sent <= limits.CREDIT_INITIAL_BYTES + PIECE + 128


def test_a_cancel_overtakes_an_upload_of_8_mib() -> None:
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    for _ in range(9):
        ends.to_provider()
        ends.to_edge()
    ends.edge.asking.cancel(rid)
    write = ends.edge.take_output()
    assert len(write) < 64
    ends.provider.receive_data(write, 0.0)
    assert ends.is_clean()


def test_a_cancel_overtakes_an_answer_of_8_mib() -> None:
    """The provider stops sending at once: what is written after the Cancel is nothing of it."""
    ends = TwoEnds()
    rid = ends.accepted(stream=False)
    ends.provider.answering.respond(
        rid, ContentType.JSON, EIGHT_MEBIBYTES, Finish(FinishReason.STOP, Usage())
    )
    for _ in range(9):
        ends.to_edge()
        ends.to_provider()
    ends.edge.asking.cancel(rid)
    ends.settle()
    assert ends.is_clean()


def test_a_request_that_ends_stops_its_upload() -> None:
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    ends.to_provider()
    ends.provider.answering.fail(rid, Overloaded("no"))
    ends.settle()
    assert ends.is_clean()

    rid = ends.open(2, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    ends.to_provider()
    ends.provider.answering.finish(rid, Finish(FinishReason.STOP, Usage()))
    ends.settle()
    assert ends.is_clean()


@pytest.mark.parametrize("failed", [True, False])
def test_what_waits_of_an_upload_is_not_sent_after_the_end_of_its_request(failed: bool) -> None:
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    assert ends.edge.has_output
    if failed:
        ends.provider.answering.fail(rid, Overloaded("no"))
    else:
        ends.provider.answering.finish(rid, Finish(FinishReason.STOP, Usage()))
    ends.to_edge()
    assert not ends.edge.has_output


@pytest.mark.parametrize(
    "frames",
    [
        [piece(1)],
        [piece(0, last=True)],
        [piece(0), piece(0)],
        [piece(0), piece(2 * PIECE)],
        [piece(0), piece(PIECE, last=False)],
    ],
)
def test_a_body_that_is_not_as_declared_ends_the_link(frames: list[Body]) -> None:
    played = Played()
    played.hears(upload(1, 2 * PIECE))
    played.session.answering.accept(request_id(1), b"", 0)
    for frame in frames:
        events = played.hears(frame)
    assert isinstance(events[-1], LinkClosed)
    played.says()
    assert is_clean(played.session)


def test_a_body_before_it_was_accepted_or_for_a_request_without_one_ends_the_link() -> None:
    played = Played()
    played.hears(upload(1, 2 * PIECE))
    assert isinstance(played.hears(piece(0))[-1], LinkClosed)

    played = Played()
    played.hears(Request(request_id(1), "", 1, 1, 1, b"{}", 0, True, {}, 1_000, ""))
    played.session.answering.accept(request_id(1), b"", 0)
    assert isinstance(played.hears(piece(0))[-1], LinkClosed)


def test_a_request_with_payload_and_body_ends_the_link() -> None:
    played = Played()
    both = Request(request_id(1), "", 1, 1, 1, b"{}", 20_000, True, {}, 1_000, "")
    assert isinstance(played.hears(both)[-1], LinkClosed)


def test_credit_before_an_upload_was_accepted_ends_the_link() -> None:
    """Otherwise the body would go to a provider that never took the request."""
    played = Played()
    rid = played.asks(1, EIGHT_MEBIBYTES)
    played.says()
    (event,) = played.hears(Credit(rid, 16_384, 0))
    assert isinstance(event, LinkClosed)
    assert [type(frame) for frame in played.says()] == [GoAway]


def test_an_upload_over_its_credit_ends_the_link() -> None:
    played = Played()
    played.hears(upload(1, 8 * PIECE))
    played.session.answering.accept(request_id(1), b"", 0)
    state = played.session.answering.requests[request_id(1)]
    assert state.window is not None
    state.window.receive(10_000)  # as if so much were still unread
    (event,) = played.hears(piece(0))
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.CreditExceeded


def test_late_credit_for_a_finished_upload_is_taken() -> None:
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES[: 2 * PIECE])
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.to_edge()
    ends.edge.asking.on_credit(Credit(rid, 20_000, 0))
    ends.to_provider()
    ends.settle()
    assert isinstance(ends.at_provider[-1], BodyReceived)
    assert not ends.edge.closed


def test_uploads_are_bounded_by_their_declared_size() -> None:
    played = Played()
    most = limits.UPLOADS_BYTES_MAX // limits.BODY_BYTES_MAX
    events = played.hears(*(upload(n, limits.BODY_BYTES_MAX) for n in range(most)))
    assert len(events) == most
    assert played.hears(upload(999, 16_385)) == []
    (refusal,) = played.says()
    assert isinstance(refusal, Error)
    assert refusal.error_code == Overloaded.code
    played.hears(Cancel(request_id(0), 0))
    assert len(played.hears(upload(999, 16_385))) == 1


def test_an_upload_finds_its_window_before_it_is_reported() -> None:
    """The task that serves it must not learn later that there is none: it would wait for ever."""
    played = Played()
    played.session.answering._budget.left = limits.CREDIT_INITIAL_BYTES
    assert len(played.hears(upload(1, 20_000))) == 1
    assert played.hears(upload(2, 20_000)) == []
    assert len(played.hears(Request(request_id(3), "", 1, 1, 1, b"{}", 0, True, {}, 1, ""))) == 1


def test_large_answers_are_bounded_by_their_declared_size() -> None:
    played = Played()
    most = limits.UPLOADS_BYTES_MAX // limits.BODY_BYTES_MAX
    for number in range(most + 1):
        rid = played.asks(number)
        head = Response(rid, 200, 1, b"", {}, 1, UsageCount(), b"", limits.BODY_BYTES_MAX)
        events = played.hears(Accepted(rid), head)
    played.says()
    (_, failed) = events
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, Overloaded)
    assert request_id(most) not in played.session.asking.requests
    assert not played.session.closed
    played.session.close()
    played.says()
    assert is_clean(played.session)


def test_an_upload_in_small_pieces_gets_credit_for_half_a_window_at_a_time() -> None:
    played = Played()
    played.hears(upload(1, 20_000))
    played.session.answering.accept(request_id(1), b"", 0)
    played.says()
    credit: list[Credit] = []
    for offset in range(0, 20_000, 1_000):
        played.hears(piece(offset, 1_000, last=offset == 19_000))
        credit += [frame for frame in played.says() if isinstance(frame, Credit)]
    assert [frame.credit_bytes for frame in credit] == [8 * 1_032, 8 * 1_032]


def test_an_upload_is_let_go_of_once_it_is_sent() -> None:
    """A long answer must not keep the prompt in memory a second time."""
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES[: 3 * PIECE])
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    ends.settle()
    sent = ends.edge.asking.requests[rid].upload
    assert sent is not None
    assert sent.done
    assert len(sent._body) == 0
