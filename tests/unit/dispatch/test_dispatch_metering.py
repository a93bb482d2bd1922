"""Who used a provider and how much: every end of a request is counted by the same rule."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio

from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.quota import Quota
from aimo_node.dispatch.serving import ProviderService
from aimo_node.dispatch.usage import OTHER_MODELS, UNWRITTEN_MAX, UsageBook, UsageRow
from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, ModelName, PeerId, RequestId
from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import (
    CodedError,
    Draining,
    EngineFailed,
    ModelNotFound,
    Overloaded,
    RateLimitExceeded,
    RequestTimeout,
)
from aimo_node.ports.peer_network import QUEUE_HEADER, QUEUE_NO
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FAKE_ANSWER, FakeEngine, Fault

OWN, GREEDY, MODEST = PeerId("own"), PeerId("greedy"), PeerId("modest")
NOW = 1_800_000_000.0
PROMPT_WORDS = 3


class Incoming:
    """A streamed request as the link hands it over."""

    inline = True
    stream = True
    endpoint = Endpoint.CHAT
    public_id = ""
    backlog_bytes = 0

    def __init__(self, peer: PeerId = GREEDY, model: str = "fake") -> None:
        self.request_id = RequestId(bytes(16))
        self.peer = peer
        self.deadline_ms = 60_000
        self.headers: Mapping[str, str] = {}
        messages = [{"role": "user", "content": "one two three"}]
        self.body = json.dumps({"model": model, "messages": messages}).encode()
        self.text = ""
        self.begun = trio.Event()
        self.finished: Finish | None = None

    def accept(self, model_digest: bytes = b"", queue_position: int = 0) -> None:
        """Nothing waits for it here."""

    async def read_body(self) -> bytes:
        return self.body

    def respond(self, *_answer: object) -> None:
        raise AssertionError("streamed")

    def send_text(self, delta: str) -> None:
        self.text += delta
        self.begun.set()

    def send_json(self, choices: bytes) -> None:
        raise AssertionError("only text")

    def finish(self, finish: Finish) -> None:
        self.finished = finish

    def fail(self, error: CodedError) -> None:
        raise AssertionError("the link does that")

    async def wait_backlog_below(self, limit_bytes: int) -> None:
        raise AssertionError("never congested")


class Provider:
    """A service with one engine in memory."""

    def __init__(self, quota: Quota, requests_max: int = 4) -> None:
        self.now = NOW
        self.meter = Meter(OWN, quota, lambda: self.now)
        self.engine = FakeEngine(requests_max=requests_max)
        self.service = ProviderService(OWN, NodeMetrics().provider, self.meter)
        self.service.add(EnginePlan("a", "fake", lambda: self.engine, waiting_max=2))

    def used(self) -> dict[PeerId, tuple[int, int, int]]:
        """Requests, prompt and completion tokens by peer, since this was asked last."""
        return {
            row.peer: (row.requests, row.prompt_tokens, row.completion_tokens)
            for _, row in self.meter.book.take()
        }


@asynccontextmanager
async def provider(quota: Quota = Quota(), requests_max: int = 4) -> AsyncIterator[Provider]:  # noqa: B008 (frozen)
    made = Provider(quota, requests_max)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.service.run)
        await made.service.wait_settled()
        yield made
        nursery.cancel_scope.cancel()


async def test_an_answer_counts_what_its_engine_says() -> None:
    async with provider() as made:
        for peer in (GREEDY, GREEDY, MODEST, OWN):
            await made.service.handle(Incoming(peer))
        words = len(FAKE_ANSWER)
        assert made.used() == {
            GREEDY: (2, 2 * PROMPT_WORDS, 2 * words),
            MODEST: (1, PROMPT_WORDS, words),
            OWN: (1, PROMPT_WORDS, words),
        }


async def test_over_its_quota_a_peer_is_refused_and_the_others_are_not() -> None:
    async with provider(Quota(requests_per_day=1)) as made:
        await made.service.handle(Incoming(GREEDY))
        with pytest.raises(RateLimitExceeded) as caught:
            await made.service.handle(Incoming(GREEDY))
        assert caught.value.retry_after_seconds == 86_400 - NOW % 86_400
        await made.service.handle(Incoming(MODEST))
        for _ in range(3):
            await made.service.handle(Incoming(OWN))
        assert len(made.engine.requests) == 5
        made.now += 86_400
        await made.service.handle(Incoming(GREEDY))


async def test_requests_that_run_count_before_they_have_ended() -> None:
    """Else a peer that asks all at once would get as many as it likes."""
    async with provider(Quota(requests_per_day=2)) as made, trio.open_nursery() as nursery:
        made.engine.hold()
        for _ in range(2):
            nursery.start_soon(made.service.handle, Incoming())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RateLimitExceeded):
            await made.service.handle(Incoming())
        made.engine.release()


async def test_tokens_are_counted_when_the_answer_ends() -> None:
    each = PROMPT_WORDS + len(FAKE_ANSWER)
    async with provider(Quota(tokens_per_day=each + 1)) as made:
        await made.service.handle(Incoming())
        await made.service.handle(Incoming())
        with pytest.raises(RateLimitExceeded, match="tokens a day"):
            await made.service.handle(Incoming())


async def cancelled_after_the_first_token(made: Provider) -> None:
    made.engine.hold()
    incoming = Incoming()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.service.handle, incoming)
        await incoming.begun.wait()
        nursery.cancel_scope.cancel()
    made.engine.release()


async def test_a_cancelled_request_counts_what_was_produced_and_its_prompt() -> None:
    async with provider(Quota(requests_per_day=1)) as made:
        await cancelled_after_the_first_token(made)
        await trio.testing.wait_all_tasks_blocked()
        assert made.used() == {GREEDY: (1, PROMPT_WORDS, 1)}
        with pytest.raises(RateLimitExceeded):
            await made.service.handle(Incoming())


async def test_a_prompt_that_cannot_be_counted_leaves_the_rest() -> None:
    async def broken(_request: object) -> int:
        raise ZeroDivisionError

    async with provider() as made:
        made.engine.count_tokens = broken  # type: ignore[method-assign]
        await cancelled_after_the_first_token(made)
        await trio.testing.wait_all_tasks_blocked()
        assert made.used() == {GREEDY: (1, 0, 1)}
        await made.service.handle(Incoming())


async def test_a_deadline_counts_as_a_cancel(autojump_clock: object) -> None:
    async with provider() as made:
        made.engine.hold()
        with pytest.raises(RequestTimeout):
            await made.service.handle(Incoming())
        made.engine.release()
        await trio.testing.wait_all_tasks_blocked()
        assert made.used() == {GREEDY: (1, PROMPT_WORDS, 1)}


async def test_an_answer_that_breaks_off_counts_what_was_produced() -> None:
    async with provider() as made:
        made.engine.fail_next(Fault.BREAKS_OFF)
        with pytest.raises(EngineFailed):
            await made.service.handle(Incoming())
        await trio.testing.wait_all_tasks_blocked()
        assert made.used() == {GREEDY: (1, PROMPT_WORDS, 1)}


async def test_what_was_refused_before_anything_was_produced_costs_nothing() -> None:
    async with provider(Quota(requests_per_day=1), requests_max=1) as made:
        made.engine.fail_next(Fault.REFUSES)
        with pytest.raises(Overloaded):
            await made.service.handle(Incoming())
        with pytest.raises(ModelNotFound):
            await made.service.handle(Incoming(model="other"))
        async with trio.open_nursery() as nursery:
            made.engine.hold()
            nursery.start_soon(made.service.handle, Incoming(MODEST))
            await trio.testing.wait_all_tasks_blocked()
            full = Incoming()
            full.headers = {QUEUE_HEADER: QUEUE_NO}
            with pytest.raises(Overloaded):
                await made.service.handle(full)
            made.engine.release()
        assert set(made.used()) == {MODEST}
        await made.service.handle(Incoming())


async def test_a_paused_provider_finishes_and_takes_nothing_new() -> None:
    async with provider(requests_max=1) as made, trio.open_nursery() as nursery:
        said: list[EngineState] = []
        made.service.watch(lambda: said.append(made.service.offer().state))
        running, refused = Incoming(), []

        async def queued() -> None:
            with pytest.raises(Draining, match="paused by its owner") as caught:
                await made.service.handle(Incoming(MODEST))
            refused.append(caught.value)

        made.engine.hold()
        nursery.start_soon(made.service.handle, running)
        await running.begun.wait()
        nursery.start_soon(queued)
        await trio.testing.wait_all_tasks_blocked()
        made.service.pause()
        await trio.testing.wait_all_tasks_blocked()
        assert refused, "who waited is answered sooner elsewhere"
        with pytest.raises(Draining, match="paused by its owner") as caught:
            await made.service.handle(Incoming(OWN))
        assert caught.value.retry_after_seconds
        assert (made.service.health(), said) == (Health.OFFLINE, [EngineState.STOPPING])
        assert made.engine.running == 1
        made.engine.release()
        await made.service.wait_idle()
        assert running.text == "".join(FAKE_ANSWER)
        made.service.resume()
        assert (made.service.health(), said[-1]) == (Health.HEALTHY, EngineState.RUNNING)
        await made.service.handle(Incoming(MODEST))
        assert made.used().keys() == {GREEDY, MODEST}


def test_what_waits_for_the_disk_is_bounded_and_right_in_sum() -> None:
    book = UsageBook()
    for number in range(UNWRITTEN_MAX + 50):
        book.add(1, UsageRow(PeerId(f"p{number}"), ModelName("m"), 1, 2, 3, 10.0, 10.0))
    assert len(book) == UNWRITTEN_MAX + 1
    rows = [row for _, row in book.take()]
    assert sum(row.completion_tokens for row in rows) == 3 * (UNWRITTEN_MAX + 50)
    assert [row.requests for row in rows if row.model == OTHER_MODELS] == [50]
    assert not len(book)


def test_rows_of_one_hour_are_one_row() -> None:
    book = UsageBook()
    peer, model = PeerId("p"), ModelName("m")
    for moment in (5.0, 3.0, 9.0):
        book.add(0, UsageRow(peer, model, 1, 2, 3, moment, moment))
    ((hour, row),) = book.take()
    assert (hour, row) == (0, UsageRow(peer, model, 3, 6, 9, 3.0, 9.0))
    book.put_back([(hour, row)])
    assert book.take() == [(0, row)]
