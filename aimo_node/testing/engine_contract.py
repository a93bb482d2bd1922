"""The suite every engine passes: what `aimo_node.ports.engine` promises, as tests.

Write a harness for your engine, a class of tests that inherits from `EngineContract`, and a
fixture called ``harness`` in it; pytest-trio in its trio mode runs the rest.
"""

from __future__ import annotations

import enum
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, TypeVar

import pytest
import trio

from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import (
    CodedError,
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import Engine, EngineRequest
from aimo_node.testing.recording_sink import RecordingSink

PATIENCE_SECONDS: Final = 30.0
"""For anything at all: loading a model on a busy machine takes longest."""

CANCEL_SECONDS: Final = 1.0
"""From cancelling a request to an engine that generates no more."""

CALM_SECONDS: Final = 0.2
"""So long without news counts as standing still."""

PARALLEL_MAX: Final = 8
POLL_SECONDS: Final = 0.005


class Case(enum.Enum):
    """A situation a test needs; the harness says what to ask to get into it."""

    SHORT = "ends by itself within a second, and always with the same text of several tokens"
    LENGTH = "stops at its third token because max_tokens is 3"
    LONG = "goes on for some seconds"
    CONTEXT_OVERFLOW = "the prompt is too long for the model"
    BUSY = "the engine itself refuses because it is busy"
    BREAKS_OFF = "an error after the first token"
    DIES = "the engine, or the connection to it, dies after the first token (see `strike`)"


class EngineHarness(ABC):
    """How to make one kind of engine and how to bring it into each case.

    Attributes:
        model: the name it serves.
        requests_max: its limit.
        counts_tokens: whether it can count a prompt's tokens.
        comes_back: whether it answers again, by itself, after `Case.DIES`.
    """

    model: ModelName
    requests_max: int
    counts_tokens: ClassVar[bool] = True
    comes_back: ClassVar[bool] = True

    @abstractmethod
    def create(self) -> Engine:
        """A new engine that has not been started."""

    @abstractmethod
    def body(self, case: Case) -> Mapping[str, Any]:
        """What to ask; also arms the fault that belongs to the case, for the next request."""

    def strike(self, case: Case) -> None:  # noqa: B027 (most faults need no second step)
        """Called after the first token of a request of this case."""

    @abstractmethod
    async def generating(self) -> int:
        """Answers being generated, by the account of whatever generates them."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """What the engine has left behind: processes, sockets, connections; empty is right."""

    def request(self, case: Case, *, stream: bool = True, salt: str = "") -> EngineRequest:
        """A request of this case."""
        return EngineRequest(
            RequestId(uuid.uuid4().bytes), Endpoint.CHAT, self.model, self.body(case), stream, salt
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """An engine that is ready; afterwards it must have left nothing."""
        engine = self.create()
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            nursery.start_soon(engine.run, ready.set, _ignore_progress)
            with trio.fail_after(PATIENCE_SECONDS):
                await ready.wait()
            try:
                yield engine
            finally:
                nursery.cancel_scope.cancel()
        await eventually(lambda: not self.leftovers(), "nothing is left of the engine")


Check = TypeVar("Check", bound=Callable[..., Any])


def needs(case: Case) -> Callable[[Check], Check]:
    """Marks a check that only makes sense for engines which can be brought into `case`."""

    def mark(function: Check) -> Check:
        function.__dict__["needed_case"] = case
        return function

    return mark


class EngineContract:
    """Inherit, and give a fixture ``harness`` that returns an `EngineHarness`.

    Attributes:
        cases: into which the harness can bring the engine; checks of other cases are skipped.
    """

    cases: ClassVar[frozenset[Case]] = frozenset(Case)

    @pytest.fixture(autouse=True)
    def skip_impossible_case(self, request: pytest.FixtureRequest) -> None:
        """Skip before anything is started."""
        case = getattr(request.function, "needed_case", None)
        if case is not None and case not in self.cases:
            pytest.skip(f"this engine has no case {case.name}")

    async def test_engine_streams_deltas_and_then_one_finish(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            sink = await answered(engine, harness.request(Case.SHORT))
            check(len(sink.parts) > 2, "several deltas and a finish")
            end = sink.end
            check(end is not None and end.reason is FinishReason.STOP, "finish reason stop")
            check(end is not None and end.usage.prompt_tokens > 0, "the prompt is counted")
            check(end is not None and end.usage.completion_tokens > 1, "the answer is counted")

    async def test_whole_answer_is_the_streamed_one(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            streamed = await answered(engine, harness.request(Case.SHORT))
            whole = await answered(engine, harness.request(Case.SHORT, stream=False))
            check(whole.written == streamed.written, "the same text")
            check(whole.end is not None and streamed.end is not None, "both end")
            if whole.end is not None and streamed.end is not None:
                check(whole.end.reason is streamed.end.reason, "for the same reason")

    async def test_max_tokens_ends_with_reason_length(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            sink = await answered(engine, harness.request(Case.LENGTH))
            check(sink.end is not None and sink.end.reason is FinishReason.LENGTH, "length")
            check(sink.end is not None and sink.end.usage.completion_tokens == 3, "three tokens")

    async def test_parallel_answers_do_not_mix(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            alone = await answered(engine, harness.request(Case.SHORT))
            sinks = [RecordingSink() for _ in range(min(harness.requests_max, PARALLEL_MAX))]
            with trio.fail_after(PATIENCE_SECONDS):
                async with trio.open_nursery() as nursery:
                    for sink in sinks:
                        request = harness.request(Case.SHORT)
                        nursery.start_soon(engine.stream, request, sink)
            for sink in sinks:
                check(sink.written == alone.written, "each answer is whole and its own")

    async def test_cancelling_stops_the_generation(self, harness: EngineHarness) -> None:
        await _cancel_midway(harness, stream=True)

    async def test_cancelling_stops_a_whole_answer_too(self, harness: EngineHarness) -> None:
        await _cancel_midway(harness, stream=False)

    async def test_slow_consumer_holds_the_engine_back(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            sink = RecordingSink()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.stream, harness.request(Case.LONG), sink)
                await first_part(sink)
                sink.stall()
                await still(lambda: len(sink.parts), "a stalled sink is left alone")
                written = len(sink.parts)
                sink.flow()
                await eventually(lambda: len(sink.parts) > written, "it goes on afterwards")
                nursery.cancel_scope.cancel()

    async def test_one_request_too_many_is_refused_at_once(self, harness: EngineHarness) -> None:
        async with harness.running() as engine, trio.open_nursery() as nursery:
            sinks = [RecordingSink() for _ in range(harness.requests_max)]
            for sink in sinks:
                nursery.start_soon(engine.stream, harness.request(Case.LONG), sink)
            await eventually(lambda: engine.load().running == harness.requests_max, "all admitted")
            check(engine.load().load == 1.0, "the engine is at its limit")
            with trio.fail_after(CANCEL_SECONDS):
                await refused(engine, harness.request(Case.SHORT), Overloaded)
            nursery.cancel_scope.cancel()

    async def test_unknown_model_is_refused(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            known = harness.request(Case.SHORT)
            unknown = EngineRequest(
                known.request_id, known.endpoint, ModelName("no-such-model"), known.body
            )
            await refused(engine, unknown, ModelNotFound)

    @needs(Case.CONTEXT_OVERFLOW)
    async def test_too_long_prompt_is_the_callers_fault(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            for stream in (True, False):
                request = harness.request(Case.CONTEXT_OVERFLOW, stream=stream)
                await refused(engine, request, ContextLengthExceeded)

    @needs(Case.BUSY)
    async def test_busy_engine_sends_the_request_elsewhere(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            error = await refused(engine, harness.request(Case.BUSY), Overloaded)
            check(error.retryable, "another provider may try")
            await answered(engine, harness.request(Case.SHORT))

    @needs(Case.BREAKS_OFF)
    async def test_error_in_mid_stream_is_no_end(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            sink = await broken(engine, harness.request(Case.BREAKS_OFF))
            check(bool(sink.written), "what came before is kept")
            await answered(engine, harness.request(Case.SHORT))

    @needs(Case.DIES)
    async def test_death_in_mid_stream_is_no_end(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            request, sink = harness.request(Case.DIES), RecordingSink()
            with trio.fail_after(PATIENCE_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_break, engine, request, sink)
                    await first_part(sink)
                    harness.strike(Case.DIES)
            if harness.comes_back:
                await _comes_back(engine, harness)

    async def test_drain_waits_for_what_is_running(self, harness: EngineHarness) -> None:
        async with harness.running() as engine, trio.open_nursery() as nursery:
            sink, drained, running = RecordingSink(), trio.Event(), trio.CancelScope()
            nursery.start_soon(_stream_in, running, engine, harness.request(Case.LONG), sink)
            await first_part(sink)
            nursery.start_soon(_drain, engine, drained)
            await eventually_refused(engine, harness.request(Case.SHORT), Draining)
            check(not drained.is_set(), "drain waits for the running request")
            running.cancel()
            with trio.fail_after(PATIENCE_SECONDS):
                await drained.wait()

    async def test_drain_lets_an_answer_come_to_its_end(self, harness: EngineHarness) -> None:
        async with harness.running() as engine, trio.open_nursery() as nursery:
            sink = RecordingSink()
            nursery.start_soon(engine.stream, harness.request(Case.SHORT), sink)
            await first_part(sink)
            with trio.fail_after(PATIENCE_SECONDS):
                await engine.drain()
            await eventually(lambda: sink.end is not None, "the running answer is complete")

    async def test_kill_ends_everything_at_once(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            sink = RecordingSink()
            with trio.fail_after(PATIENCE_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_break, engine, harness.request(Case.LONG), sink)
                    await first_part(sink)
                    engine.kill()
                    engine.kill()
            check(engine.health() is Health.OFFLINE, "a killed engine is offline")
            await eventually(lambda: not harness.leftovers(), "nothing is left")
            await refused(engine, harness.request(Case.SHORT), EngineFailed)
        engine.kill()

    async def test_cancelled_run_leaves_nothing(self, harness: EngineHarness) -> None:
        async with harness.running() as engine, trio.open_nursery() as nursery:
            sink = RecordingSink()
            nursery.start_soon(engine.stream, harness.request(Case.LONG), sink)
            await first_part(sink)
            nursery.cancel_scope.cancel()
        check(engine.health() is Health.OFFLINE, "it is offline afterwards")

    async def test_engine_that_is_not_running_fails(self, harness: EngineHarness) -> None:
        engine = harness.create()
        check(engine.health() is Health.OFFLINE, "offline before it is started")
        await refused(engine, harness.request(Case.SHORT), EngineFailed)

    async def test_capabilities_name_the_model(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            offered = engine.capabilities()
            check(harness.model in [model.name for model in offered.models], "its model")
            check(offered.requests_max == harness.requests_max, "its limit")
            check(engine.health() is Health.HEALTHY, "ready means healthy")

    async def test_tokens_of_a_prompt_are_counted(self, harness: EngineHarness) -> None:
        async with harness.running() as engine:
            request = harness.request(Case.SHORT)
            if not harness.counts_tokens:
                try:
                    await engine.count_tokens(request)
                except EngineFailed:
                    return
                raise AssertionError("an engine that cannot count says so")
            counted = await engine.count_tokens(request)
            sink = await answered(engine, request)
            check(sink.end is not None and sink.end.usage.prompt_tokens == counted, "as in usage")


def check(condition: bool, promise: str) -> None:  # noqa: FBT001 (an assertion with a name)
    """Fail unless `condition`.

    Raises:
        AssertionError: naming the promise that was broken.
    """
    if not condition:
        raise AssertionError(f"broken promise: {promise}")


async def eventually(condition: Callable[[], bool], promise: str) -> None:
    """Wait for something outside trio's sight, such as the end of a process.

    Raises:
        AssertionError: it did not come true in time.
    """
    with trio.move_on_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 (what happens outside sets no trio.Event)
            await trio.sleep(POLL_SECONDS)
        return
    raise AssertionError(f"broken promise: {promise}")


async def eventually_async(number: Callable[[], Any], wanted: int) -> None:
    """Wait until an asynchronous count is `wanted`; the caller limits the time."""
    while await number() != wanted:  # noqa: ASYNC110 (what happens outside sets no trio.Event)
        await trio.sleep(POLL_SECONDS)


async def still(number: Callable[[], int], promise: str) -> None:
    """Wait until a count stands still.

    Raises:
        AssertionError: it never does.
    """
    with trio.move_on_after(PATIENCE_SECONDS):
        while True:
            before = number()
            await trio.sleep(CALM_SECONDS)
            if number() == before:
                return
    raise AssertionError(f"broken promise: {promise}")


async def first_part(sink: RecordingSink) -> None:
    """Wait for the first part of an answer."""
    with trio.fail_after(PATIENCE_SECONDS):
        await sink.first.wait()


async def answered(engine: Engine, request: EngineRequest) -> RecordingSink:
    """The answer to a request that must succeed."""
    sink = RecordingSink()
    with trio.fail_after(PATIENCE_SECONDS):
        await engine.stream(request, sink)
    check(sink.end is not None, "stream returns after finish")
    return sink


async def refused(engine: Engine, request: EngineRequest, expected: type[CodedError]) -> CodedError:
    """The error of a request that must fail before anything is written.

    Raises:
        AssertionError: it succeeded.
    """
    sink = RecordingSink()
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await engine.stream(request, sink)
    except expected as error:
        check(not sink.parts, "nothing is written before a refusal")
        return error
    raise AssertionError(f"broken promise: {expected.__name__} is raised")


async def eventually_refused(
    engine: Engine, request: EngineRequest, expected: type[CodedError]
) -> None:
    """Ask until the refusal comes; until then the answer may be anything but a failure."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                await engine.stream(request, RecordingSink())
            except expected:
                return


async def broken(engine: Engine, request: EngineRequest) -> RecordingSink:
    """What was written by a request that must break off."""
    sink = RecordingSink()
    await _break(engine, request, sink)
    return sink


async def _break(engine: Engine, request: EngineRequest, sink: RecordingSink) -> None:
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await engine.stream(request, sink)
    except EngineFailed:
        check(sink.end is None, "a broken answer has no finish")
        return
    raise AssertionError("broken promise: an answer that breaks off raises EngineFailed")


async def _comes_back(engine: Engine, harness: EngineHarness) -> None:
    """Ask until the engine answers again."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                await answered(engine, harness.request(Case.SHORT))
                break
            except EngineFailed:
                await trio.sleep(0.02)
    await eventually(lambda: engine.health() is Health.HEALTHY, "it is healthy again")


async def _cancel_midway(harness: EngineHarness, *, stream: bool) -> None:
    """Many at a time, since a fast engine would be through with one before it is cancelled."""
    async with harness.running() as engine:
        sinks = [RecordingSink() for _ in range(min(harness.requests_max, PARALLEL_MAX))]
        async with trio.open_nursery() as nursery:
            for sink in sinks:
                nursery.start_soon(engine.stream, harness.request(Case.LONG, stream=stream), sink)
            with trio.fail_after(PATIENCE_SECONDS):
                await eventually_async(harness.generating, len(sinks))
            if stream:
                for sink in sinks:
                    await first_part(sink)
            nursery.cancel_scope.cancel()
        written = [len(sink.parts) for sink in sinks]
        check(engine.load().running == 0, "its place is free again")
        with trio.fail_after(CANCEL_SECONDS):
            await eventually_async(harness.generating, 0)
        await trio.sleep(CALM_SECONDS)
        check([len(sink.parts) for sink in sinks] == written, "nothing is written any more")


async def _stream_in(
    scope: trio.CancelScope, engine: Engine, request: EngineRequest, sink: RecordingSink
) -> None:
    with scope:
        await engine.stream(request, sink)


async def _drain(engine: Engine, drained: trio.Event) -> None:
    await engine.drain()
    drained.set()


def _ignore_progress(line: str, state: EngineState = EngineState.STARTING) -> None:
    """Progress is for people."""
