"""What a peer that was let in can do to a node: nothing that grows without bound."""

from __future__ import annotations

import pytest

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import CloseCode, ModelNotFound, Overloaded, RemoteProtocolError
from aimo_node.protocol import codec, limits
from aimo_node.protocol.events import LinkClosed, RequestReceived
from aimo_node.protocol.frames import (
    Accepted,
    Cancel,
    Credit,
    Directory,
    Error,
    GoAway,
    Ping,
    Request,
)
from tests.unit.protocol.two_ends import Played, is_clean, request_id

FINISH = Finish(FinishReason.STOP, Usage())


def request(number: int, credit: int = limits.CREDIT_INITIAL_BYTES) -> Request:
    return Request(request_id(number), "", 1, 1, 1, b"{}", 0, True, {}, 1_000, "", credit)


def queued(played: Played) -> int:
    outbox = played.session.outbox
    return outbox._queued_bytes + outbox._control_bytes + len(outbox._tail)


def test_a_peer_that_pings_and_never_reads_is_cut_off() -> None:
    played = Played()
    most = 0
    for nonce in range(limits.CONTROL_BYTES_MAX):
        events = played.hears(Ping(nonce))
        most = max(most, queued(played))
        if events:
            break
    assert isinstance(events[-1], LinkClosed)
    assert most <= limits.CONTROL_BYTES_MAX
    assert [type(frame) for frame in played.says()] == [GoAway]


def test_a_peer_that_asks_and_never_reads_is_refused_then_cut_off() -> None:
    """Requests that ended leave frames behind: they are bounded like running ones."""
    played = Played()
    most = number = 0
    while not played.session.closed:
        number += 1
        for event in played.hears(request(number)):
            if isinstance(event, RequestReceived):
                played.session.answering.fail(request_id(number), ModelNotFound("n" * 1_000))
        most = max(most, queued(played))
        assert number < 100_000
    assert most < limits.OUTBOX_BYTES_MAX + limits.CONTROL_BYTES_MAX
    assert limits.OUTBOX_REQUESTS_MAX < number < 6 * limits.OUTBOX_REQUESTS_MAX


def test_a_peer_that_grants_credit_and_never_reads_is_cut_off() -> None:
    """Otherwise credit would move a whole answer from the bounded backlog into the output."""
    played = Played()
    played.hears(request(1))
    rid = request_id(1)
    answering = played.session.answering
    answering.accept(rid, b"", 0)
    most = 0
    for _ in range(10_000):
        answering.send_text(rid, "x" * 8_000)
        left = answering.requests[rid].credit.left
        played.hears(Credit(rid, limits.CREDIT_WINDOW_BYTES_MAX - left, 0))
        most = max(most, queued(played))
        if played.session.closed:
            break
    assert played.session.closed
    assert most < limits.OUTBOX_BYTES_MAX + 2 * limits.CREDIT_WINDOW_BYTES_MAX


def test_a_provider_that_grants_credit_and_never_reads_is_cut_off() -> None:
    played = Played()
    body = bytes(limits.BODY_BYTES_MAX)
    number = 0
    while not played.session.closed:
        number += 1
        assert number < 50
        try:
            rid = played.asks(number, body)
        except Overloaded:
            break
        played.hears(Accepted(rid))
        while not played.session.closed:
            upload = played.session.asking.requests[rid].upload
            assert upload is not None
            if upload.done:
                break
            grant = limits.CREDIT_WINDOW_BYTES_MAX - upload.credit.left
            played.hears(Credit(rid, grant, 0))
    assert queued(played) < limits.OUTBOX_BYTES_MAX + 2 * limits.CREDIT_WINDOW_BYTES_MAX
    (event,) = played.hears(Credit(request_id(number - 1), 1, 0))
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.CreditExceeded


def test_a_peer_that_opens_and_cancels_for_ever_leaves_nothing() -> None:
    played = Played()
    for number in range(10_000):
        played.hears(request(number), Cancel(request_id(number), 0))
    assert is_clean(played.session)


def test_a_request_id_is_used_once() -> None:
    """The task of the first would answer for the second: it starts after both were read."""
    played = Played()
    events = played.hears(request(1), Cancel(request_id(1), 0), request(1))
    assert isinstance(events[-1], LinkClosed)

    played = Played()
    played.hears(request(1))
    played.session.answering.fail(request_id(1), ModelNotFound("none"))
    assert isinstance(played.hears(request(1))[-1], LinkClosed)


def test_the_memory_of_ended_requests_is_bounded() -> None:
    played = Played()
    for number in range(3 * limits.ENDED_REQUESTS_MAX):
        played.hears(request(number), Cancel(request_id(number), 0))
    assert len(played.session.answering._ended) == limits.ENDED_REQUESTS_MAX


def test_requests_over_the_bound_are_refused_and_the_others_go_on() -> None:
    played = Played()
    most = limits.REQUESTS_PER_LINK_MAX
    assert len(played.hears(*(request(number) for number in range(most)))) == most
    assert played.hears(request(most)) == []
    (refusal,) = played.says()
    assert isinstance(refusal, Error)
    assert refusal.error_code == Overloaded.code
    played.hears(Cancel(request_id(5), 0))
    assert len(played.hears(request(most))) == 1


def test_announcements_nobody_reads_end_the_link_without_raising() -> None:
    """A relay tells hundreds of edges: the one that does not read must not stop its loop."""
    played = Played()
    batch = Directory(full=False, gone=["x" * 64] * 800)
    for _ in range(2 * limits.ANNOUNCEMENT_BYTES_MAX // len(codec.encode(batch))):
        played.session.announce(batch)
    assert queued(played) <= limits.ANNOUNCEMENT_BYTES_MAX
    assert played.session.next_deadline() < 0
    (event,) = played.session.handle_deadline(0.5)
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.ProtocolViolation
    assert [type(frame) for frame in played.says()] == [GoAway]


def test_control_frames_nobody_reads_end_the_link_without_raising() -> None:
    """Credit is granted from a consumer's task: the provider's fault must not surface there."""
    played = Played()
    for number in range(40_000):
        rid = played.asks(number)
        played.session.take_output()
        played.session.asking.cancel(rid)
    assert queued(played) <= limits.CONTROL_BYTES_MAX
    assert not played.session.closed
    played.session.outbox.overflowed = True
    (event,) = played.hears(Ping(1))
    assert isinstance(event, LinkClosed)
    assert played.session.next_deadline() == float("inf")


def test_a_link_that_overflows_before_it_closes_queues_nothing_more() -> None:
    played = Played()
    outbox = played.session.outbox
    outbox.put_control(bytes(limits.CONTROL_BYTES_MAX))
    played.session.drain()
    assert outbox.overflowed
    assert outbox._control_bytes == limits.CONTROL_BYTES_MAX


@pytest.mark.parametrize("length", [limits.FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_an_oversize_length_is_refused_before_anything_is_kept(length: int) -> None:
    played = Played()
    (event,) = played.session.receive_data(length.to_bytes(4, "big") + b"x" * 100, 0.0)
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.FrameTooLarge


def test_a_frame_that_never_ends_keeps_one_frame_at_most() -> None:
    played = Played()
    played.session.receive_data(limits.FRAME_BYTES_MAX.to_bytes(4, "big"), 0.0)
    for _ in range(1_000):
        played.session.receive_data(b"\x00" * 60, 0.0)
    assert len(played.session._reader._pending) <= limits.FRAME_BYTES_MAX + 4


def test_a_peer_may_not_speak_in_frames_nobody_knows() -> None:
    played = Played()
    (event,) = played.session.receive_data(b"\x00\x00\x00\x02\x91\x63", 0.0)
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.UnknownFrame
    with pytest.raises(RemoteProtocolError):
        codec.decode(b"\x91\x63")
