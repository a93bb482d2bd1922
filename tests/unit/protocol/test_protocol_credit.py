"""The arithmetic of credit: sender and receiver agree, and nothing waits for ever."""

from __future__ import annotations

import pytest

from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits
from aimo_node.protocol.credit import ReceiveWindow, SendCredit, WindowBudget, cost_of
from aimo_node.protocol.events import LinkClosed, PartReceived
from aimo_node.protocol.frames import Accepted, Credit, Frame, Request, StreamChunk
from tests.unit.protocol.two_ends import Played, TwoEnds, request_id

INITIAL = limits.CREDIT_INITIAL_BYTES
LONE = limits.CREDIT_LONE_BYTES


def opened_window(budget: WindowBudget) -> ReceiveWindow:
    assert budget.take(INITIAL)
    return ReceiveWindow(budget)


def test_a_frame_costs_its_payload_and_its_envelope() -> None:
    assert cost_of(0) == 32
    assert cost_of(5) == 37


@pytest.mark.parametrize(
    ("left", "cost", "allowed"),
    [
        (100, 100, True),
        (100, 101, False),
        (LONE - 1, LONE, False),
        (LONE, 10 * LONE, True),
        (-1, 0, False),
        (0, 0, True),
    ],
)
def test_sender_and_receiver_agree_on_what_may_go(left: int, cost: int, *, allowed: bool) -> None:
    assert SendCredit(left).allows(cost) is allowed
    window = opened_window(WindowBudget())
    window._left = left
    if allowed:
        window.receive(cost)
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            window.receive(cost)
        assert caught.value.close_code is CloseCode.CreditExceeded


def test_credit_comes_back_once_half_a_window_was_consumed() -> None:
    window = opened_window(WindowBudget())
    window.receive(INITIAL // 2)
    assert window.consume(INITIAL // 2 - 1) == 0
    assert window.consume(1) == INITIAL // 2


def test_whatever_was_consumed_the_largest_frame_may_follow() -> None:
    """Otherwise a stream whose consumer has taken everything could stand still."""
    for size in (INITIAL, 2 * INITIAL, limits.CREDIT_WINDOW_BYTES_MAX):
        window = ReceiveWindow(WindowBudget(), size)
        window.receive(size // 2 - 1)
        assert window.consume(size // 2 - 1) == 0
        window.receive(cost_of(limits.PAYLOAD_BYTES_MAX))


def test_a_window_grows_only_when_it_is_what_slows_the_stream_down() -> None:
    window = opened_window(WindowBudget())
    window.receive(INITIAL // 2)
    assert window.consume(INITIAL // 2) == INITIAL // 2
    window.receive(INITIAL)
    assert window.consume(INITIAL) == 2 * INITIAL
    assert window.size == 2 * INITIAL


def test_a_window_grows_over_a_distance_too() -> None:
    """The sender waits for credit that is on its way, so at the receiver half always looks unused;
    uploads once stayed at 32 KiB a round trip.
    """
    window = opened_window(WindowBudget())
    piece = cost_of(limits.BODY_PIECE_BYTES)
    for _ in range(60):
        window.receive(piece)
        window.consume(piece)
    assert window.size == limits.CREDIT_WINDOW_BYTES_MAX


def test_a_window_stops_growing_at_256_kib() -> None:
    budget = WindowBudget()
    window = opened_window(budget)
    for _ in range(10):
        size = window.size
        window.receive(size)
        window.consume(size)
    assert window.size == limits.CREDIT_WINDOW_BYTES_MAX
    window.close()
    assert budget.left == limits.CREDIT_LINK_BYTES_MAX


def test_fast_streams_leave_room_for_1024_more() -> None:
    """Grown windows once took the whole link: the 129th request was refused."""
    budget = WindowBudget()
    for _ in range(200):
        window = opened_window(budget)
        for _ in range(6):
            size = window.size
            window.receive(size)
            window.consume(size)
    assert sum(budget.take(INITIAL) for _ in range(2_000)) >= 1_024 - 200


def test_more_credit_than_the_largest_window_is_refused() -> None:
    credit = SendCredit(INITIAL)
    credit.add(limits.CREDIT_WINDOW_BYTES_MAX - INITIAL)
    with pytest.raises(RemoteProtocolError) as caught:
        credit.add(1)
    assert caught.value.close_code is CloseCode.CreditExceeded


@pytest.mark.parametrize("initial", [0, INITIAL - 1, limits.CREDIT_WINDOW_BYTES_MAX + 1, 2**32 - 1])
def test_a_first_window_out_of_bounds_is_refused(initial: int) -> None:
    played = Played()
    fields = (request_id(1), "", 1, 1, 1, b"{}", 0, True, {}, 1_000, "", initial)
    assert isinstance(played.hears(Request(*fields))[-1], LinkClosed)


def test_a_provider_without_credit_ends_the_link() -> None:
    played = Played()
    played.asks()
    frames: list[Frame] = [Accepted(request_id(1))]
    frames += [StreamChunk(request_id(1), n, 0, b"x" * 8_160) for n in range(3)]
    events = played.hears(*frames)
    assert [type(event) for event in events[1:3]] == [PartReceived, PartReceived]
    assert isinstance(events[-1], LinkClosed)
    assert events[-1].close_code is CloseCode.CreditExceeded


def test_a_flood_of_empty_chunks_needs_credit_too() -> None:
    """They carry nothing, yet each would wait in memory for a slow consumer."""
    played = Played()
    played.asks()
    events = played.hears(Accepted(request_id(1)))
    for index in range(10_000):
        events += played.hears(StreamChunk(request_id(1), index, 0, b""))
    assert played.session.closed
    assert len(events) < INITIAL // limits.CREDIT_FRAME_BYTES + 3


def test_a_slow_consumer_stalls_its_own_request_only() -> None:
    ends = TwoEnds()
    slow, fast = ends.accepted(1), ends.accepted(2)
    ends.at_edge.clear()
    for _ in range(100):
        ends.provider.answering.send_text(slow, "x" * 1_000)
    for number in range(100):
        ends.provider.answering.send_text(fast, "y" * 1_000)
        ends.settle()
        ends.edge.asking.consumed(fast, cost_of(1_000))
        ends.settle()
        arrived = [e for e in ends.at_edge if isinstance(e, PartReceived) and e.request_id == fast]
        assert len(arrived) == number + 1
    stalled = [e for e in ends.at_edge if isinstance(e, PartReceived) and e.request_id == slow]
    assert len(stalled) == INITIAL // cost_of(1_000)
    assert ends.provider.answering.backlog_bytes(slow) == (100 - len(stalled)) * cost_of(1_000)
    ends.edge.asking.consumed(slow, len(stalled) * cost_of(1_000))
    ends.settle()
    assert ends.provider.answering.backlog_bytes(slow) < (100 - len(stalled)) * cost_of(1_000)


def test_credit_for_an_answer_is_reported_to_whoever_waits_for_room() -> None:
    played = Played()
    played.hears(Request(request_id(1), "", 1, 1, 1, b"{}", 0, True, {}, 1_000, ""))
    (event,) = played.hears(Credit(request_id(1), 5, 0))
    assert type(event).__name__ == "CreditReceived"


@pytest.mark.parametrize("size", [0, limits.CREDIT_LINK_BYTES_MAX + 1])
def test_a_credit_frame_out_of_bounds_is_malformed(size: int) -> None:
    played = Played()
    assert isinstance(played.hears(Credit(request_id(1), size, 0))[-1], LinkClosed)
