"""Two sessions and everything that can happen to requests between them, in any order.

Each request ends exactly once at the edge and at most once at the provider, text arrives as a
prefix of what was sent, honest peers never end the link, and at the end nothing is left behind.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import ContentType, Endpoint, FinishReason, RequestId
from aimo_node.errors import Draining, EngineFailed, NetworkError
from aimo_node.protocol import limits
from aimo_node.protocol.events import (
    BodyReceived,
    Event,
    LinkClosed,
    PartReceived,
    RequestFailed,
    RequestReceived,
    RequestWithdrawn,
)
from aimo_node.protocol.frames import Heartbeat
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.session import Session
from tests.unit.protocol.two_ends import PROVIDER, TERMS, TwoEnds, is_clean, request_id

FINISH = Finish(FinishReason.STOP, Usage(1, 2, 3))
HEARTBEAT = Heartbeat(PROVIDER, 1, 1, 0, 0, 0, 0, 0)
numbers = st.integers(0, 1 << 16)
sizes = st.one_of(st.integers(0, 60), st.integers(8_000, 20_000), st.integers(0, 65_536))
body_sizes = st.one_of(st.integers(0, 60), st.integers(16_300, 120_000))


class Life(RuleBasedStateMachine):
    """An edge and a provider; `chance` cuts the bytes."""

    @initialize(seed=st.integers(0, 1 << 32))
    def start(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ends = TwoEnds()
        self.wire_to_edge = self.wire_to_provider = b""
        self.opened: list[RequestId] = []
        self.bodies: dict[RequestId, bytes] = {}
        self.cancelled: set[RequestId] = set()
        self.edge_ends: Counter[RequestId] = Counter()
        self.arrived: dict[RequestId, bytes] = {}
        self.unconsumed: Counter[RequestId] = Counter()
        self.serving: dict[RequestId, str] = {}
        self.sent: dict[RequestId, bytes] = {}
        self.served: Counter[RequestId] = Counter()
        self.over = False
        self.announced = self.heard = 0

    # What the edge does.

    @precondition(lambda self: not self.over)
    @rule(size=body_sizes, stream=st.booleans())
    def opens(self, size: int, stream: bool) -> None:
        rid = request_id(len(self.opened) + 1)
        body = bytes([len(self.opened) % 251]) * size
        self.ends.edge.asking.open(rid, Endpoint.CHAT, body, stream=stream, terms=TERMS)
        self.opened.append(rid)
        self.bodies[rid] = body
        self.arrived[rid] = self.sent[rid] = b""

    @precondition(lambda self: self.opened)
    @rule(number=numbers)
    def cancels(self, number: int) -> None:
        rid = self.opened[number % len(self.opened)]
        if not self.edge_ends[rid]:
            self.cancelled.add(rid)
        self.ends.edge.asking.cancel(rid)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, share=st.floats(0.0, 1.0))
    def consumes(self, number: int, share: float) -> None:
        rid = self.opened[number % len(self.opened)]
        size = round(self.unconsumed[rid] * share)
        self.unconsumed[rid] -= size
        self.ends.edge.asking.consumed(rid, size)

    # What the provider does.

    def _serving(self, number: int, *states: str) -> RequestId | None:
        ready = [rid for rid, state in self.serving.items() if state in states]
        return ready[number % len(ready)] if ready else None

    @rule(number=numbers)
    def accepts(self, number: int) -> None:
        rid = self._serving(number, "received")
        if rid is not None:
            self.serving[rid] = "accepted"
            self.ends.provider.answering.accept(rid, b"digest", 1)

    @rule(number=numbers, size=sizes, text=st.booleans())
    def sends(self, number: int, size: int, text: bool) -> None:
        rid = self._serving(number, "accepted", "answering")
        if rid is None:
            return
        self.serving[rid] = "answering"
        payload = bytes([65 + len(self.sent[rid]) % 26]) * size
        self.sent[rid] += payload
        if text:
            self.ends.provider.answering.send_text(rid, payload.decode())
        else:
            self.ends.provider.answering.send_json(rid, payload)

    @rule(number=numbers)
    def finishes(self, number: int) -> None:
        rid = self._serving(number, "accepted", "answering")
        if rid is not None:
            del self.serving[rid]
            self.ends.provider.answering.finish(rid, FINISH)

    @rule(number=numbers, size=body_sizes)
    def responds(self, number: int, size: int) -> None:
        rid = self._serving(number, "accepted")
        if rid is not None:
            del self.serving[rid]
            self.sent[rid] = b"r" * size
            self.ends.provider.answering.respond(rid, ContentType.JSON, b"r" * size, FINISH)

    @rule(number=numbers)
    def fails(self, number: int) -> None:
        rid = self._serving(number, "received", "accepted", "answering")
        if rid is not None:
            del self.serving[rid]
            self.ends.provider.answering.fail(rid, EngineFailed("died"))

    @rule(provider=st.booleans())
    def drains(self, provider: bool) -> None:
        (self.ends.provider if provider else self.ends.edge).drain()

    @precondition(lambda self: not self.over)
    @rule()
    def announces(self) -> None:
        self.announced += 1
        self.ends.provider.announce(HEARTBEAT)

    # What the wire does.

    @rule(writes=st.integers(1, 4))
    def writes(self, writes: int) -> None:
        for _ in range(writes):
            self.wire_to_edge += self.ends.provider.take_output()
            self.wire_to_provider += self.ends.edge.take_output()

    @rule(size=st.integers(1, 200_000))
    def delivers_to_edge(self, size: int) -> None:
        piece, self.wire_to_edge = self.wire_to_edge[:size], self.wire_to_edge[size:]
        self._at_edge(self.ends.edge.receive_data(piece, 0.0))

    @rule(size=st.integers(1, 200_000))
    def delivers_to_provider(self, size: int) -> None:
        piece, self.wire_to_provider = self.wire_to_provider[:size], self.wire_to_provider[size:]
        self._at_provider(self.ends.provider.receive_data(piece, 0.0))

    @precondition(lambda self: not self.over and len(self.opened) > 3)
    @rule(edge_first=st.booleans(), orderly=st.booleans(), chance=st.integers(0, 7))
    def ends_the_link(self, edge_first: bool, orderly: bool, chance: int) -> None:
        if chance:  # most runs go on for long
            return
        self.over = True
        one, other = self.ends.edge, self.ends.provider
        if not edge_first:
            one, other = other, one
        self._at(one, one.close() if orderly else one.connection_lost("reset"))
        self._at(other, other.connection_lost("reset"))

    def _at(self, session: Session, events: list[Event]) -> None:
        (self._at_edge if session is self.ends.edge else self._at_provider)(events)

    def _at_edge(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, PartReceived):
                rid = event.request_id
                assert rid not in self.cancelled
                assert not self.edge_ends[rid]
                if isinstance(event.part, Finish):
                    assert event.part == FINISH
                    assert self.arrived[rid] == self.sent[rid]
                    self.edge_ends[rid] += 1
                    continue
                part = event.part
                self.arrived[rid] += part.data if isinstance(part, JsonDelta) else part.encode()
                self.unconsumed[rid] += event.size
            elif isinstance(event, RequestFailed):
                assert isinstance(event.error, EngineFailed | Draining)
                assert event.request_id not in self.cancelled
                self.edge_ends[event.request_id] += 1
            elif isinstance(event, LinkClosed):
                assert self.over, event
            elif isinstance(event, Heartbeat):
                self.heard += 1

    def _at_provider(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RequestReceived):
                rid = RequestId(event.request.request_id)
                self.served[rid] += 1
                self.serving[rid] = "received"
                assert event.body in (None, self.bodies[rid])
            elif isinstance(event, BodyReceived):
                assert event.body == self.bodies[event.request_id]
            elif isinstance(event, RequestWithdrawn):
                self.serving.pop(event.request_id, None)
                assert event.request_id in self.cancelled
            elif isinstance(event, LinkClosed):
                assert self.over, event
                self.serving.clear()

    # What always holds.

    @invariant()
    def every_account_is_right(self) -> None:
        if not hasattr(self, "ends"):
            return
        for session in (self.ends.edge, self.ends.provider):
            asking, answering = session.asking, session.answering
            windows = [state.window for state in asking.requests.values()]
            windows += [s.window for s in answering.requests.values() if s.window is not None]
            reserved = sum(window.size for window in windows)
            assert asking._budget.left == limits.CREDIT_LINK_BYTES_MAX - reserved
            uploads = [s.assembly.size for s in answering.requests.values() if s.assembly]
            assert answering._uploads_bytes == sum(uploads)
            bodies = [s.assembly.size for s in asking.requests.values() if s.assembly]
            assert asking._bodies_bytes == sum(bodies)
            check_outbox(session.outbox)
            assert session.asking._budget is session.answering._budget

    @invariant()
    def each_request_ends_at_most_once(self) -> None:
        if hasattr(self, "ends"):
            assert all(count <= 1 for count in self.edge_ends.values())
            assert all(count <= 1 for count in self.served.values())
            assert all(self.sent[rid].startswith(self.arrived[rid]) for rid in self.opened)

    def teardown(self) -> None:
        """Let everything come to its end, then look for what is left."""
        if not hasattr(self, "ends"):
            return
        while not self.over and self._settle():
            for rid in list(self.serving):
                self.ends.provider.answering.fail(rid, EngineFailed("end of the test"))
            self.serving.clear()
        if not self.over:
            running = set(self.opened) - self.cancelled
            assert all(self.edge_ends[rid] == 1 for rid in running)
            assert self.heard == self.announced
        else:
            for rid in self.opened:
                self.ends.provider.answering.send_text(rid, "late")
                self.ends.provider.answering.finish(rid, FINISH)
                self.ends.edge.asking.cancel(rid)
            for session in (self.ends.edge, self.ends.provider):
                while session.take_output():
                    pass
            try:
                self.ends.open(1 << 20)
            except NetworkError:
                pass
            else:
                raise AssertionError("a request was opened on a link that has ended")
        assert is_clean(self.ends.edge)
        assert is_clean(self.ends.provider)

    def _settle(self) -> bool:
        """Move and consume everything; whether anything happened."""
        happened = False
        while True:
            self.writes(1)
            moved = bool(
                self.wire_to_edge or self.wire_to_provider or sum(self.unconsumed.values())
            )
            if not moved:
                return happened or bool(self.serving)
            happened = True
            self.delivers_to_edge(1 << 30)
            self.delivers_to_provider(1 << 30)
            for number in range(len(self.opened)):
                self.consumes(number, 1.0)


def check_outbox(outbox: Outbox) -> None:
    lanes = outbox._lanes.values()
    assert outbox._queued_bytes == sum(len(frame) for lane in lanes for frame in lane.frames)
    assert outbox._control_bytes == sum(map(len, outbox._control))
    assert sorted(outbox._turns) == sorted(outbox._lanes)
    assert all(lane.frames for lane in lanes)
    assert len(outbox._tail) <= limits.FRAME_BYTES_MAX
    assert not outbox.overflowed


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
