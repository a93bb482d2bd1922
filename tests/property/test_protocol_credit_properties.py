"""Credit over a wire that delivers as it likes: never exceeded, never stuck, nothing lost."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import ContentType, Endpoint, FinishReason, RequestId
from aimo_node.protocol import limits
from aimo_node.protocol.credit import cost_of
from aimo_node.protocol.events import BodyReceived, Event, LinkClosed, PartReceived, RequestFailed
from aimo_node.protocol.frames import Body, Cancel
from tests.unit.protocol.two_ends import TERMS, TwoEnds, decoded, drained, request_id

FINISH = Finish(FinishReason.STOP, Usage(1, 2, 3))
LONE_COST = cost_of(limits.PAYLOAD_BYTES_MAX)
STEPS_MAX = 50_000

chunk_sizes = st.one_of(
    st.integers(0, 40),
    st.integers(8_100, 8_300),
    st.integers(16_300, 16_500),
    st.integers(0, limits.PAYLOAD_BYTES_MAX),
    st.just(limits.PAYLOAD_BYTES_MAX),
)
streams = st.lists(st.lists(chunk_sizes, min_size=1, max_size=40), min_size=1, max_size=6)


class Wire:
    """Bytes under way in one direction; delivered in pieces of any size."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._under_way = b""

    def send(self, data: bytes) -> None:
        self._under_way += data

    def deliver(self) -> bytes:
        most = self._chance.choice([1, 40, 1_500, 70_000, 1 << 20])
        size = self._chance.randint(1, most)
        piece, self._under_way = self._under_way[:size], self._under_way[size:]
        return piece

    def __bool__(self) -> bool:
        return bool(self._under_way)


class Streaming:
    """Answers of given chunk sizes from a provider to consumers that take at random."""

    def __init__(self, sizes: list[list[int]], chance: random.Random) -> None:
        self.ends, self.chance = TwoEnds(), chance
        self.to_edge, self.to_provider = Wire(chance), Wire(chance)
        self.ids = [self.ends.accepted(number) for number in range(1, len(sizes) + 1)]
        self.ends.at_edge.clear()
        self.left = {rid: deque(each) for rid, each in zip(self.ids, sizes, strict=True)}
        self.sent: dict[RequestId, list[bytes]] = {rid: [] for rid in self.ids}
        self.got: dict[RequestId, list[bytes]] = {rid: [] for rid in self.ids}
        self.held: dict[RequestId, list[int]] = {rid: [] for rid in self.ids}
        self.finished: list[RequestId] = []

    def generate(self, rid: RequestId | None = None) -> bool:
        """The engine makes the next chunk of one request."""
        rid = rid or self.chance.choice(self.ids)
        if rid not in self.left:
            return False
        if not self.left[rid]:
            self.ends.provider.answering.finish(rid, FINISH)
            del self.left[rid]
            return True
        size = self.left[rid].popleft()
        payload = bytes([65 + len(self.sent[rid]) % 26]) * size
        self.sent[rid].append(payload)
        if self.chance.random() < 0.5:
            self.ends.provider.answering.send_json(rid, payload)
        else:
            self.ends.provider.answering.send_text(rid, payload.decode())
        return True

    def write(self) -> bool:
        """One write of each side goes onto the wire."""
        to_edge = self.ends.provider.take_output()
        to_provider = self.ends.edge.take_output()
        self.to_edge.send(to_edge)
        self.to_provider.send(to_provider)
        return bool(to_edge or to_provider)

    def move(self, wire: Wire | None = None) -> bool:
        """Something arrives."""
        wire = wire if wire is not None else self.chance.choice([self.to_edge, self.to_provider])
        if not wire:
            return False
        if wire is self.to_edge:
            self._arrived(self.ends.edge.receive_data(wire.deliver(), 0.0))
        else:
            events = self.ends.provider.receive_data(wire.deliver(), 0.0)
            assert not any(isinstance(event, LinkClosed) for event in events)
        return True

    def _arrived(self, events: list[Event]) -> None:
        for event in events:
            assert isinstance(event, PartReceived), event
            if isinstance(event.part, Finish):
                assert event.part == FINISH
                self.finished.append(event.request_id)
                continue
            part = event.part
            self.got[event.request_id].append(
                part.data if isinstance(part, JsonDelta) else part.encode()
            )
            self.held[event.request_id].append(event.size)

    def consume(self, rid: RequestId | None = None) -> bool:
        """One consumer takes some of what has arrived, at once or bit by bit."""
        rid = rid or self.chance.choice(self.ids)
        if not self.held[rid]:
            return False
        count = self.chance.choice([1, len(self.held[rid])])
        taken, self.held[rid] = self.held[rid][:count], self.held[rid][count:]
        self.ends.edge.asking.consumed(rid, sum(taken))
        return True

    def check(self) -> None:
        """Credit holds, for each request and for the link."""
        windows = 0
        for rid, state in self.ends.edge.asking.requests.items():
            windows += state.window.size
            assert state.window.size <= limits.CREDIT_WINDOW_BYTES_MAX
            assert sum(self.held[rid]) <= state.window.size + LONE_COST
        assert windows <= limits.CREDIT_LINK_BYTES_MAX
        assert self.ends.edge.asking._budget.left == limits.CREDIT_LINK_BYTES_MAX - windows

    def run(self) -> None:
        steps = [self.generate, self.write, self.move, self.consume]
        for _ in range(STEPS_MAX):
            self.check()
            if not self.chance.choice(steps)() and not self._get_on():
                break
        assert not self.left, "the engine could not go on"
        assert sorted(self.finished) == sorted(self.ids), "a stream stands still"
        for rid in self.ids:
            assert b"".join(self.got[rid]) == b"".join(self.sent[rid])
        assert self.ends.is_clean()

    def _get_on(self) -> bool:
        """Whether anything at all can still happen."""
        return (
            self.write()
            or self.move(self.to_edge)
            or self.move(self.to_provider)
            or any(self.generate(rid) for rid in self.ids)
            or any(self.consume(rid) for rid in self.ids)
        )


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(0, 2**32))
def test_every_stream_completes_whatever_the_wire_and_the_consumers_do(
    sizes: list[list[int]], seed: int
) -> None:
    Streaming(sizes, random.Random(seed)).run()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, limits.PAYLOAD_BYTES_MAX), min_size=1, max_size=60),
    st.integers(0, 2**32),
)
def test_a_consumer_that_takes_nothing_holds_a_window_and_one_frame_at_most(
    sizes: list[int], seed: int
) -> None:
    streaming = Streaming([sizes], random.Random(seed))
    while streaming.left or streaming.to_edge or streaming.to_provider:
        streaming.generate()
        streaming.write()
        streaming.move()
    held = sum(sum(costs) for costs in streaming.held.values())
    assert held <= limits.CREDIT_INITIAL_BYTES + LONE_COST
    backlog = streaming.ends.provider.answering.backlog_bytes(streaming.ids[0])
    assert held + backlog >= sum(sizes)


@settings(max_examples=30, deadline=None)
@given(st.integers(limits.INLINE_BYTES_MAX + 1, 400_000), st.integers(0, 2**32), st.booleans())
def test_every_large_body_completes_whatever_the_wire_does(
    size: int, seed: int, upload: bool
) -> None:
    ends, chance = TwoEnds(), random.Random(seed)
    body = chance.randbytes(size)
    rid = ends.open(1, body if upload else b"{}")
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    if not upload:
        ends.provider.answering.respond(rid, ContentType.JSON, body, FINISH)

    def cut(data: bytes) -> list[bytes]:
        place = chance.randint(0, len(data))
        return [data[:place], data[place:]]

    while ends.to_edge(cut) or ends.to_provider(cut):
        pass
    if upload:
        assert ends.at_provider[-1] == BodyReceived(rid, body)
        ends.provider.answering.finish(rid, FINISH)
        ends.settle()
    else:
        assert ends.at_edge[-2] == PartReceived(rid, JsonDelta(body), 0)
    assert ends.is_clean()


EIGHT_MEBIBYTES = bytes(limits.BODY_BYTES_MAX)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60))
def test_a_cancel_overtakes_an_upload_of_8_mib_at_any_moment(writes: int) -> None:
    """What is on the wire cannot be called back: at most one write. After it comes the Cancel."""
    ends = TwoEnds()
    rid = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(rid, b"", 0)
    for _ in range(writes):
        ends.to_edge()
        ends.to_provider()
    ends.edge.asking.cancel(rid)
    tail = ends.edge.outbox._tail
    out = b"".join(drained(ends.edge))
    assert out.startswith(tail)
    assert [type(frame) for frame in decoded(out[len(tail) :])] in ([Cancel], [])
    ends.provider.receive_data(out, 0.0)
    ends.settle()
    assert ends.is_clean()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60))
def test_a_cancel_stops_an_answer_of_8_mib_at_any_moment(writes: int) -> None:
    ends = TwoEnds()
    rid = ends.accepted(stream=False)
    ends.provider.answering.respond(rid, ContentType.JSON, EIGHT_MEBIBYTES, FINISH)
    for _ in range(writes):
        ends.to_edge()
        ends.to_provider()
    ends.edge.asking.cancel(rid)
    ends.to_provider()
    after = b"".join(drained(ends.provider))
    assert len(after) <= limits.FRAME_BYTES_MAX
    ends.edge.receive_data(after, 0.0)
    assert ends.is_clean()


@pytest.mark.parametrize("payload_bytes", [4, 1_000, 8_000])
def test_a_small_answer_gets_out_although_a_hundred_large_ones_wait(payload_bytes: int) -> None:
    """Each of the others sends its quantum, and one frame more, before it is its turn."""
    ends = TwoEnds()
    others = [ends.accepted(number) for number in range(1, 101)]
    late = ends.accepted(999)
    for rid in others:
        for _ in range(limits.CREDIT_INITIAL_BYTES // cost_of(payload_bytes)):
            ends.provider.answering.send_text(rid, "x" * payload_bytes)
    ends.provider.answering.send_text(late, "small")
    before = b"".join(drained(ends.provider)).index(b"small")
    assert before <= 100 * (limits.QUANTUM_BYTES + cost_of(payload_bytes) + 8)


def test_a_large_upload_does_not_hold_up_the_other_requests() -> None:
    ends = TwoEnds()
    large = ends.open(1, EIGHT_MEBIBYTES)
    ends.settle()
    ends.provider.answering.accept(large, b"", 0)
    for _ in range(20):
        ends.to_edge()
        ends.to_provider()
    ends.to_edge()
    ends.edge.asking.open(request_id(2), Endpoint.CHAT, b'"late"', stream=True, terms=TERMS)
    frames = decoded(b"".join(drained(ends.edge)))
    place = [type(frame) for frame in frames].index(type(frames[-1]))
    before = sum(len(frame.payload) for frame in frames[:place] if isinstance(frame, Body))
    assert before <= limits.QUANTUM_BYTES + limits.BODY_PIECE_BYTES


def test_a_thousand_streams_share_a_link() -> None:
    """All complete, and nobody's window shuts anybody out."""
    ends = TwoEnds()
    ids = [ends.accepted(number) for number in range(1, 1_001)]
    ends.at_edge.clear()
    for turn in range(30):
        for rid in ids:
            ends.provider.answering.send_text(rid, f"{turn:04d}" * 150)
        ends.settle()
        for event in ends.at_edge:
            assert isinstance(event, PartReceived)
            ends.edge.asking.consumed(event.request_id, event.size)
        ends.at_edge.clear()
        ends.settle()
    for rid in ids:
        ends.provider.answering.finish(rid, FINISH)
    ends.settle()
    assert len(ends.at_edge) == 1_000
    assert not any(isinstance(event, RequestFailed | LinkClosed) for event in ends.at_edge)
    assert ends.is_clean()
