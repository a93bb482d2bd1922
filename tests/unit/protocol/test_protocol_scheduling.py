"""The order of output: control first, then fair shares by bytes, in writes of bounded size."""

from __future__ import annotations

from aimo_node.protocol import limits
from aimo_node.protocol.scheduling import Outbox
from tests.unit.protocol.two_ends import request_id


def emptied(outbox: Outbox) -> list[bytes]:
    writes = []
    while data := outbox.take():
        writes.append(data)
    return writes


def test_ready_frames_are_joined_into_one_write() -> None:
    outbox = Outbox()
    for number in range(100):
        outbox.put(request_id(number), b"%03d" % number)
    assert outbox
    assert emptied(outbox) == [b"".join(b"%03d" % number for number in range(100))]
    assert not outbox
    assert outbox.take() == b""


def test_control_frames_overtake_payload() -> None:
    outbox = Outbox()
    outbox.put(request_id(1), b"payload")
    outbox.put_control(b"control")
    assert emptied(outbox) == [b"controlpayload"]


def test_no_write_is_larger_than_its_bound_and_none_is_empty() -> None:
    outbox = Outbox()
    sizes = [1, 63_999, 64_000, 64_001, 67_584, 5, 30_000, 40_000]
    for number, size in enumerate(sizes):
        outbox.put(request_id(number), bytes(size))
    for _ in range(3):
        outbox.put_control(bytes(60_000))
    writes = emptied(outbox)
    assert sum(map(len, writes)) == sum(sizes) + 180_000
    assert all(0 < len(write) <= limits.WRITE_BYTES_MAX for write in writes)
    assert outbox._queued_bytes == 0
    assert outbox._control_bytes == 0


def test_a_frame_half_written_is_finished_before_anything_else() -> None:
    outbox = Outbox()
    outbox.put(request_id(1), b"a" * 70_000)
    first = outbox.take()
    outbox.put_control(b"control")
    outbox.discard(request_id(1))
    assert first + outbox.take() == b"a" * 70_000
    assert outbox.take() == b"control"


def test_a_small_answer_does_not_wait_for_a_hundred_large_ones() -> None:
    """Each of the others gets its quantum and at most one frame more before it."""
    outbox = Outbox()
    frame = 8_224
    for number in range(100):
        for _ in range(30):
            outbox.put(request_id(number), bytes(frame))
    outbox.put(request_id(999), b"small")
    before = 0
    while b"small" not in (data := outbox.take()):
        before += len(data)
    assert before <= 100 * (limits.QUANTUM_BYTES + frame)


def test_frames_larger_than_a_quantum_take_turns_as_well() -> None:
    outbox = Outbox()
    for _ in range(8):
        outbox.put(request_id(1), b"L" * 64_000)
    for _ in range(32):
        outbox.put(request_id(2), b"s" * 16_000)
    taken = b"".join(emptied(outbox))
    half = taken[:512_000]
    assert abs(half.count(b"L") - half.count(b"s")) <= 64_000 + limits.QUANTUM_BYTES


def test_a_request_that_is_discarded_leaves_the_others_in_order() -> None:
    outbox = Outbox()
    outbox.put(request_id(1), b"a")
    outbox.put(request_id(2), b"b")
    outbox.put(request_id(1), b"c")
    outbox.put(request_id(3), b"d")
    assert outbox.discard(request_id(1))
    assert not outbox.discard(request_id(1))
    assert emptied(outbox) == [b"bd"]


def test_discarding_tells_whether_anything_had_gone() -> None:
    outbox = Outbox()
    for _ in range(3):
        outbox.put(request_id(1), bytes(40_000))
    outbox.take()
    assert not outbox.discard(request_id(1))


def test_announcements_keep_their_order_and_take_turns_with_requests() -> None:
    outbox = Outbox()
    for number in range(10):
        outbox.put_announcement(b"%d" % number * 50_000)
    outbox.put(request_id(1), b"token")
    taken = b"".join(emptied(outbox))
    assert taken.index(b"token") <= 50_000
    assert taken.replace(b"token", b"") == b"".join(b"%d" % n * 50_000 for n in range(10))


def test_requests_waiting_do_not_count_against_announcements() -> None:
    outbox = Outbox()
    for number in range(400):
        outbox.put(request_id(number), bytes(60_000))
    outbox.put_announcement(b"x")
    assert not outbox.overflowed
