"""A provider with several engines: what it offers, who may ask, what happens when one is lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import trio

from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.parameters import OwnerLimits
from aimo_node.dispatch.serving import RETIRE_SECONDS, RETRY_SECONDS, ProviderService
from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import ContentType, Endpoint, PeerId, RequestId
from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import (
    CodedError,
    ConfigError,
    Draining,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
)
from aimo_node.ports.engine import Capabilities, Progress
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FAKE_ANSWER, FakeEngine

OWN, OTHER = PeerId("own"), PeerId("other")


class Incoming:
    """A request that is not streamed, as the link hands it over."""

    inline = True
    stream = False
    endpoint = Endpoint.CHAT
    deadline_ms = 60_000
    headers: Mapping[str, str] = {}
    public_id = ""
    backlog_bytes = 0

    def __init__(self, model: str, peer: PeerId = OTHER, **fields: object) -> None:
        self.request_id = RequestId(bytes(16))
        self.peer = peer
        messages = [{"role": "user", "content": "hi"}]
        self.body = json.dumps({"model": model, "messages": messages, **fields}).encode()
        self.accepted: list[tuple[bytes, int]] = []
        self.answer = ""

    def accept(self, model_digest: bytes = b"", queue_position: int = 0) -> None:
        self.accepted.append((model_digest, queue_position))

    async def read_body(self) -> bytes:
        return self.body

    def respond(self, content_type: ContentType, payload: bytes, finish: Finish) -> None:
        self.answer = payload.decode()

    def send_text(self, delta: str) -> None:
        raise AssertionError("not streamed")

    def send_json(self, choices: bytes) -> None:
        raise AssertionError("not streamed")

    def finish(self, finish: Finish) -> None:
        raise AssertionError("not streamed")

    def fail(self, error: CodedError) -> None:
        raise AssertionError("the link does that")

    async def wait_backlog_below(self, limit_bytes: int) -> None:
        raise AssertionError("not streamed")


class Private(FakeEngine):
    """For its owner only."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), owner_only=True)


class Broken(FakeEngine):
    """Cannot be started `failures` times."""

    failures = 1_000_000

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        if type(self).failures > 0:
            type(self).failures -= 1
            raise EngineStartFailed("out of GPU memory")
        await super().run(ready, progress)


def service() -> ProviderService:
    return ProviderService(OWN, NodeMetrics().provider)


@asynccontextmanager
async def serving(made: ProviderService) -> AsyncIterator[trio.Nursery]:
    """A service that runs, all its engines started or given up."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await made.wait_settled()
        yield nursery
        nursery.cancel_scope.cancel()


def plan(label: str, engine: FakeEngine, **more: object) -> EnginePlan:
    return EnginePlan(label, "fake", lambda: engine, **more)  # type: ignore[arg-type]


@contextmanager
def flat() -> Iterator[None]:
    """Raise what is in a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


async def test_each_model_is_answered_by_its_engine() -> None:
    made = service()
    one, two = FakeEngine("one", answer=("1",)), FakeEngine("two", answer=("2",))
    made.add(plan("a", one))
    made.add(plan("b", two))
    async with serving(made):
        for model, answer in (("one", "1"), ("two", "2")):
            incoming = Incoming(model)
            await made.handle(incoming)
            assert incoming.answer == answer
            assert incoming.accepted == [(b"fake" * 8, 0)]
        with pytest.raises(ModelNotFound, match="does not serve 'three'"):
            await made.handle(Incoming("three"))
        offer = made.offer()
        assert [model.name for model in offer.models] == ["one", "two"]
        assert [engine.label for engine in offer.engines] == ["a", "b"]
        assert (offer.kinds, offer.requests_max, offer.state) == ("fake", 8, EngineState.RUNNING)


async def test_one_engine_lost_leaves_the_other() -> None:
    made = service()
    one, two = FakeEngine("one"), FakeEngine("two")
    made.add(plan("a", one))
    made.add(plan("b", two))
    async with serving(made):
        one.crash()
        assert [model.name for model in made.offer().models] == ["two"]
        assert [engine.state for engine in made.offer().engines] == [
            EngineState.STARTING,
            EngineState.RUNNING,
        ]
        assert made.health() is Health.HEALTHY
        with pytest.raises(ModelNotFound):
            await made.handle(Incoming("one"))
        two.crash()
        assert made.health() is Health.OFFLINE
        assert made.offer().state is EngineState.STARTING
        with pytest.raises(Overloaded):
            await made.handle(Incoming("one"))
        one.revive()
        await made.handle(Incoming("one"))


async def test_nobody_but_the_owner_learns_of_an_owner_only_engine() -> None:
    made = service()
    made.add(plan("a", FakeEngine("public")))
    made.add(plan("b", Private("secret")))
    async with serving(made):
        assert [model.name for model in made.offer().models] == ["public"]
        assert [engine.label for engine in made.offer().engines] == ["a"]
        assert len(made.offer(to_owner=True).models) == 2
        with pytest.raises(ModelNotFound, match="does not serve 'secret'"):
            await made.handle(Incoming("secret", OTHER))
        incoming = Incoming("secret", OWN)
        await made.handle(incoming)
        assert incoming.answer == "".join(FAKE_ANSWER)


async def test_the_provider_ends_when_its_only_engine_cannot_start() -> None:
    made = service()
    Broken.failures = 1_000_000
    made.add(plan("a", Broken()))
    with pytest.raises(EngineStartFailed, match="out of GPU memory"), flat():
        await made.run()


async def test_an_engine_that_cannot_start_leaves_others_alone(autojump_clock: object) -> None:
    made = service()
    Broken.failures = 2
    made.add(plan("a", Broken("one")))
    made.add(plan("b", FakeEngine("two")))
    async with serving(made):
        assert [engine.state for engine in made.engines] == [EngineState.ERROR, EngineState.RUNNING]
        assert made.engines[0].detail == "out of GPU memory"
        await made.handle(Incoming("two"))
        await trio.sleep(RETRY_SECONDS * 3 + 1)
        assert made.engines[0].state is EngineState.RUNNING, "tried again with growing pauses"


async def test_its_owner_has_a_lost_engine_tried_again_at_once(autojump_clock: object) -> None:
    made = service()
    Broken.failures = 1
    made.add(plan("a", Broken("one")))
    made.add(plan("b", FakeEngine("two")))
    async with serving(made):
        started = trio.current_time()
        await made.engines[0].load_now()
        assert trio.current_time() == started


async def test_the_queue_tells_its_positions(autojump_clock: object) -> None:
    made = service()
    engine = FakeEngine("one", requests_max=1)
    made.add(plan("a", engine, waiting_max=1))
    async with serving(made) as nursery:
        engine.hold()
        first, second = Incoming("one"), Incoming("one")
        nursery.start_soon(made.handle, first)
        await trio.testing.wait_all_tasks_blocked()
        hurried = Incoming("one")
        hurried.headers = {"queue": "no"}
        with pytest.raises(Overloaded):
            await made.handle(hurried)
        nursery.start_soon(made.handle, second)
        await trio.testing.wait_all_tasks_blocked()
        assert (first.accepted[0][1], second.accepted[0][1]) == (0, 1)
        assert made.load().waiting == 1
        third = Incoming("one")
        with pytest.raises(Overloaded):
            await made.handle(third)
        assert not third.accepted
        engine.release()
        await trio.testing.wait_all_tasks_blocked()
        assert first.answer == second.answer == "".join(FAKE_ANSWER)


async def test_limits_are_those_of_the_engine() -> None:
    made = service()
    engine = FakeEngine("one")
    limits = OwnerLimits(tokens_max=3, media_domains=frozenset({"good.example"}))
    made.add(plan("a", engine, limits=limits))
    async with serving(made):
        await made.handle(Incoming("one", max_tokens=100))
        assert engine.requests[-1].body["max_tokens"] == 3
        part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
        with pytest.raises(InvalidRequest, match="does not fetch remote media"):
            await made.handle(Incoming("one", messages=[{"role": "user", "content": [part]}]))


async def test_engines_come_and_go_while_it_runs(autojump_clock: object) -> None:
    made = service()
    news: list[int] = []
    made.watch(lambda: news.append(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        with pytest.raises(ModelNotFound, match="serves no models"):
            await made.handle(Incoming("one"))
        engine = FakeEngine("one")
        await made.add(plan("a", engine, essential=False)).settled.wait()
        with pytest.raises(ConfigError, match="an engine called a already"):
            made.add(plan("a", engine))
        engine.hold()
        running = Incoming("one")
        nursery.start_soon(made.handle, running)
        await trio.testing.wait_all_tasks_blocked()
        seen = len(news)
        assert made.remove("a")
        assert len(news) > seen
        assert not made.offer().models
        engine.release()
        await trio.testing.wait_all_tasks_blocked()
        assert running.answer == "".join(FAKE_ANSWER), "what it was answering ended in time"
        assert engine.health() is Health.OFFLINE
        assert not made.remove("a")
        nursery.cancel_scope.cancel()


async def test_an_engine_added_at_run_time_never_ends_the_node(autojump_clock: object) -> None:
    made = service()
    Broken.failures = 1_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        engine = made.add(plan("a", Broken(), essential=False))
        await trio.sleep(10_000)
        assert engine.state is EngineState.ERROR
        nursery.cancel_scope.cancel()


async def test_of_two_with_the_same_model_the_first_that_has_it_loaded_answers(
    autojump_clock: object,
) -> None:
    made = service()
    for label in ("a", "b"):
        made.add(
            EnginePlan(label, "fake", lambda own=label: FakeEngine("m", answer=(own,)), 3_600.0)
        )
    async with serving(made):

        async def answered_by() -> str:
            incoming = Incoming("m")
            await made.handle(incoming)
            return incoming.answer

        assert await answered_by() == "a"
        await made.engines[0].unload_now()
        assert made.offer().models[0].state is EngineState.RUNNING
        assert await answered_by() == "b"
        await made.engines[1].unload_now()
        assert await answered_by() == "a", "it is loaded"


class Slow(FakeEngine):
    """Never gets ready."""

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        progress("loading")
        await trio.sleep_forever()


async def test_who_waits_for_an_engine_that_is_removed_is_told(autojump_clock: object) -> None:
    made = service()
    kinds: list[type[FakeEngine]] = [Slow, FakeEngine]
    plan = EnginePlan("a", "fake", lambda: kinds.pop()("one"), idle_seconds=10, essential=False)
    engine = made.add(plan)
    refused: list[Exception] = []

    async def in_vain(what: Callable[[], Awaitable[None]]) -> None:
        try:
            await what()
        except (Overloaded, EngineStartFailed) as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await engine.settled.wait()
        await trio.sleep(11)
        with trio.fail_after(RETIRE_SECONDS + 1):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(in_vain, lambda: made.handle(Incoming("one")))
                waiting.start_soon(in_vain, engine.load_now)
                await trio.testing.wait_all_tasks_blocked()
                assert engine.state is EngineState.STARTING
                made.remove("a")
            await engine.unload_now()
        assert len(refused) == 2
        nursery.cancel_scope.cancel()


async def test_an_engine_that_is_removed_at_once_never_runs(autojump_clock: object) -> None:
    made = service()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await trio.testing.wait_all_tasks_blocked()
        fake = FakeEngine("one")
        engine = made.add(plan("a", fake, essential=False))
        made.remove("a")
        await trio.sleep(1)
        assert (engine.state, fake.health()) == (EngineState.STOPPED, Health.OFFLINE)
        nursery.cancel_scope.cancel()


async def test_what_its_owner_unloads_is_not_tried_again(autojump_clock: object) -> None:
    made = service()
    Broken.failures = 1
    made.add(plan("a", Broken("one")))
    made.add(plan("b", FakeEngine("two")))
    async with serving(made):
        await made.engines[0].unload_now()
        assert made.engines[0].state is EngineState.STOPPED
        await trio.sleep(10_000)
        assert made.engines[0].state is EngineState.STOPPED
        await made.engines[0].load_now()
        assert made.engines[0].state is EngineState.RUNNING


async def test_a_deadline_in_the_queue_frees_the_ticket(autojump_clock: object) -> None:
    made = service()
    engine = FakeEngine("one", requests_max=1)
    made.add(plan("a", engine, waiting_max=1))
    async with serving(made) as nursery:
        engine.hold()
        nursery.start_soon(made.handle, Incoming("one"))
        await trio.testing.wait_all_tasks_blocked()
        hurried = Incoming("one")
        hurried.deadline_ms = 5_000
        with pytest.raises(RequestTimeout):
            await made.handle(hurried)
        assert (made.load().running, made.load().waiting, made.running) == (1, 0, 1)


async def test_the_last_of_several_that_fails_ends_the_provider(autojump_clock: object) -> None:
    """The first to fail leaves the others their time to start."""
    made = service()

    class Later(Broken):
        async def run(self, ready: Callable[[], None], progress: Progress) -> None:
            await trio.sleep(100)
            await super().run(ready, progress)

    Broken.failures = Later.failures = 1_000_000
    made.add(plan("a", Broken()))
    made.add(plan("b", Later()))
    started = trio.current_time()
    with pytest.raises(EngineStartFailed, match="out of GPU memory"), flat():
        await made.run()
    assert trio.current_time() - started == pytest.approx(100)


async def test_who_only_waits_is_sent_elsewhere_when_the_provider_drains(
    autojump_clock: object,
) -> None:
    """Another provider can answer at once; here the grace would be over before their turn."""
    made = service()
    kinds: list[type[FakeEngine]] = [Slow, FakeEngine]
    busy = FakeEngine("one", requests_max=1)
    made.add(plan("a", busy, waiting_max=1))
    made.add(EnginePlan("b", "fake", lambda: kinds.pop()("two"), idle_seconds=10))
    refused: list[Exception] = []

    async def in_vain(model: str) -> None:
        with pytest.raises(Draining) as caught:
            await made.handle(Incoming(model))
        refused.append(caught.value)

    async with serving(made) as nursery:
        busy.hold()
        await trio.sleep(11)
        running = Incoming("one")
        nursery.start_soon(made.handle, running)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(in_vain, "one")
        nursery.start_soon(in_vain, "two")
        await trio.testing.wait_all_tasks_blocked()
        assert (made.load().waiting, made.engines[1].state) == (1, EngineState.STARTING)
        made.drain()
        await trio.testing.wait_all_tasks_blocked()
        assert len(refused) == 2
        assert made.running == 1
        busy.release()
        await made.wait_idle()
        assert running.answer
