"""How long an attempt may take, and what a request that goes wrong leaves: with providers that
nobody answers for, on a virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.dispatch import dispatcher as dispatcher_module
from aimo_node.dispatch.attempts import OPEN_SECONDS_MAX
from aimo_node.dispatch.dispatcher import ATTEMPTS_MAX, Dispatcher
from aimo_node.dispatch.inference import Answer, InferenceRequest
from aimo_node.domain.answer import AnswerPart, Finish, Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, PeerId
from aimo_node.domain.links import LinkFacts
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import InvalidRequest, NetworkError, Overloaded, RequestTimeout
from aimo_node.ports.peer_network import Exchange, OutgoingRequest
from aimo_node.routing.table import RoutingTable

DONE = Finish(FinishReason.STOP, Usage(1, 1))


class FakeExchange:
    """Says `parts`, then what `then` does."""

    path = "direct"

    def __init__(self, *parts: AnswerPart, then: Callable[[], Awaitable[None]]) -> None:
        self._parts: list[AnswerPart] = list(parts)
        self._then = then
        self.cancelled = False

    async def receive(self) -> Sequence[AnswerPart]:
        if not self._parts:
            await self._then()
        parts, self._parts = self._parts, []
        return parts

    def cancel(self) -> None:
        self.cancelled = True


class FakeNetwork:
    """`doors` say what happens when somebody asks a peer."""

    def __init__(self, **doors: Callable[[], Awaitable[FakeExchange]]) -> None:
        self._doors = doors
        self.asked: list[str] = []

    async def open_exchange(self, peer: PeerId, request: OutgoingRequest) -> Exchange:
        self.asked.append(peer)
        return await self._doors[peer]()

    def link_facts(self, peer: PeerId) -> LinkFacts | None:
        return None


async def black_hole() -> FakeExchange:
    """Packets to it vanish."""
    await trio.sleep_forever()
    raise AssertionError


async def refusing() -> FakeExchange:
    raise Overloaded("busy")


async def answering() -> FakeExchange:
    return FakeExchange("hi", DONE, then=trio.sleep_forever)


async def silent() -> FakeExchange:
    return FakeExchange(then=trio.sleep_forever)


async def lost_later() -> FakeExchange:
    async def break_off() -> None:
        await trio.sleep(0.7)
        raise NetworkError("the link was lost")

    return FakeExchange(then=break_off)


def dispatcher_of(network: FakeNetwork, *peers: str) -> Dispatcher:
    """Peers are tried in this order."""
    table = RoutingTable()
    for busy, peer in enumerate(peers):
        table.describe(
            PeerId("relay"),
            Descriptor(
                PeerId(peer),
                1,
                (ModelInfo(ModelName("tiny"), digest=peer.encode()),),
                engine_state=EngineState.RUNNING,
            ),
            trio.current_time(),
        )
        for _ in range(busy):
            table.begun(PeerId(peer))
    return Dispatcher(network, table)


def ask(deadline: float = 60.0, body: bytes = b"{}") -> InferenceRequest:
    return InferenceRequest(Endpoint.CHAT, "tiny", body, True, deadline)


async def test_provider_nobody_answers_for_costs_a_consumer_a_few_seconds(autojump_clock):
    network = FakeNetwork(hole=black_hole, good=answering)
    dispatcher = dispatcher_of(network, "hole", "good")
    started = trio.current_time()
    answer = await dispatcher.open(ask())
    assert trio.current_time() - started == pytest.approx(OPEN_SECONDS_MAX)
    assert await answer.receive() == ["hi", DONE]
    assert (answer.provider, answer.attempts) == ("good", 2)
    assert answer.model_digest == b"good", "the digest is that of the one who answers"
    entry = dispatcher.table.get(PeerId("hole"))
    assert entry is not None
    assert entry.failures == 1
    assert entry.in_flight == 0
    answer.cancel()


async def test_who_was_asked_last_is_known_though_nobody_could_be_reached(autojump_clock):
    async def breaks() -> FakeExchange:
        return FakeExchange(then=break_off)

    async def break_off() -> None:
        raise NetworkError("the link was lost")

    dispatcher = dispatcher_of(FakeNetwork(good=breaks, hole=black_hole), "good", "hole")
    admitted: list[Answer] = []
    answer = await dispatcher.open(ask(), admitted.append)
    assert (admitted, answer.path) == ([answer], "direct")
    with pytest.raises(NetworkError, match="could not be reached"):
        await answer.receive()
    assert (answer.provider, answer.path, answer.attempts) == ("hole", "", 2)
    answer.cancel()


async def test_all_attempts_fit_into_the_time_the_edge_holds_its_headers(autojump_clock):
    holes = [f"hole{number}" for number in range(6)]
    dispatcher = dispatcher_of(FakeNetwork(**dict.fromkeys(holes, black_hole)), *holes)
    started = trio.current_time()
    with pytest.raises(NetworkError, match="could not be reached"):
        await dispatcher.open(ask())
    assert trio.current_time() - started == pytest.approx(ATTEMPTS_MAX * OPEN_SECONDS_MAX)
    assert trio.current_time() - started < 15
    assert dispatcher.running == 0


async def test_deadline_that_passes_while_dialling_is_a_timeout(autojump_clock):
    network = FakeNetwork(hole=black_hole, good=answering)
    dispatcher = dispatcher_of(network, "hole", "good")
    with pytest.raises(RequestTimeout):
        await dispatcher.open(ask(deadline=1.0))
    assert network.asked == ["hole"]
    entry = dispatcher.table.get(PeerId("hole"))
    assert entry is not None
    assert (entry.in_flight, entry.failures) == (0, 0)


async def test_silence_is_told_on_time_though_the_next_candidate_is_being_dialled(autojump_clock):
    """And the dial is not begun anew each time somebody asks."""
    network = FakeNetwork(a=lost_later, hole=black_hole, good=answering)
    dispatcher = dispatcher_of(network, "a", "hole", "good")
    started = trio.current_time()
    answer = await dispatcher.open(ask())
    for second in (1, 2, 3, 4):
        assert await answer.receive(silence_seconds=1.0) == ()
        assert trio.current_time() - started == pytest.approx(second)
    assert await answer.receive(silence_seconds=1.0) == ["hi", DONE]
    assert trio.current_time() - started == pytest.approx(0.7 + OPEN_SECONDS_MAX)
    assert answer.attempts == 3
    answer.cancel()
    assert [entry.in_flight for entry in dispatcher.table] == [0, 1, 2]


async def test_asking_without_patience_gives_what_is_there(autojump_clock):
    dispatcher = dispatcher_of(FakeNetwork(good=answering, silent=silent), "silent", "good")
    quiet = await dispatcher.open(ask())
    assert await quiet.receive(silence_seconds=0.0) == ()
    assert await quiet.receive(silence_seconds=0.0) == ()
    quiet.cancel()
    dispatcher = dispatcher_of(FakeNetwork(good=answering), "good")
    answer = await dispatcher.open(ask())
    assert await answer.receive(silence_seconds=0.0) == ["hi", DONE]
    answer.cancel()


async def test_consumer_that_leaves_while_dialling_leaves_nothing(autojump_clock):
    dispatcher = dispatcher_of(FakeNetwork(hole=black_hole), "hole")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatcher.open, ask())
        await wait_all_tasks_blocked()
        assert dispatcher.running == 1
        nursery.cancel_scope.cancel()
    assert dispatcher.running == 0
    entry = dispatcher.table.get(PeerId("hole"))
    assert entry is not None
    assert entry.in_flight == 0


async def test_consumer_that_leaves_early_is_no_proof_that_a_provider_works(autojump_clock):
    dispatcher = dispatcher_of(FakeNetwork(silent=silent), "silent")
    dispatcher.table.begun(PeerId("silent"))
    dispatcher.table.ended(PeerId("silent"), failed=True, now=trio.current_time())
    answer = await dispatcher.open(ask())
    answer.cancel()
    entry = dispatcher.table.get(PeerId("silent"))
    assert entry is not None
    assert entry.failures == 1


async def test_error_is_heard_once_and_nobody_else_is_asked_after_it(autojump_clock):
    async def refuse_request() -> FakeExchange:
        async def fail() -> None:
            raise InvalidRequest("wrong", param="messages")

        return FakeExchange(then=fail)

    network = FakeNetwork(a=refuse_request, good=answering)
    dispatcher = dispatcher_of(network, "a", "good")
    answer = await dispatcher.open(ask())
    with pytest.raises(InvalidRequest):
        await answer.receive()
    with pytest.raises(Exception, match="the answer has ended"):
        await answer.receive()
    answer.cancel()
    assert network.asked == ["a"]
    assert dispatcher.running == 0


async def test_bodies_kept_for_another_attempt_are_bounded(monkeypatch):
    monkeypatch.setattr(dispatcher_module, "BODIES_BYTES_MAX", 100)
    dispatcher = dispatcher_of(FakeNetwork(good=answering), "good")
    first = await dispatcher.open(ask(body=b"x" * 60))
    with pytest.raises(Overloaded):
        await dispatcher.open(ask(body=b"x" * 60))
    await first.receive()
    second = await dispatcher.open(ask(body=b"x" * 60))
    first.cancel()
    second.cancel()
    third = await dispatcher.open(ask(body=b"x" * 100))
    third.cancel()


async def test_route_and_end_of_a_request_can_be_followed_in_the_log(autojump_clock):
    dispatcher = dispatcher_of(FakeNetwork(a=refusing, good=answering), "a", "good")
    with structlog.testing.capture_logs() as logs:
        answer = await dispatcher.open(ask())
        await answer.receive()
        answer.cancel()
    told = [(line["event"], line["log_level"], line["provider"]) for line in logs]
    assert told == [
        ("request.routed", "debug", "a"),
        ("attempt.failed", "debug", "a"),
        ("request.routed", "debug", "good"),
        ("request.ended", "debug", "good"),
    ]
    assert logs[0]["reasons"] == ("healthy", "occupancy 0.0", "no link yet")
    assert (logs[-1]["path"], logs[-1]["attempts"], logs[-1]["outcome"]) == ("direct", 2, "ok")
    assert {line["request"] for line in logs} == {answer.request_id.hex()}
