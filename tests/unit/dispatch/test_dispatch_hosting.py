"""The life of an engine under a provider: loading, unloading when idle, loading on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.dispatch.hosting import EnginePlan, HostedEngine
from aimo_node.domain.ids import Endpoint, ModelName, RequestId
from aimo_node.domain.models import EngineState, Health, Load
from aimo_node.errors import ConfigError, EngineFailed, EngineStartFailed, Overloaded
from aimo_node.ports.engine import Capabilities, EngineRequest, Progress
from aimo_node.testing.fake_engine import FAKE_ANSWER, FakeEngine
from aimo_node.testing.recording_sink import RecordingSink

ANSWER = "".join(FAKE_ANSWER)
LOAD_SECONDS = 7.0


class SlowEngine(FakeEngine):
    """Takes a while to load, and may fail to."""

    failure: EngineStartFailed | None = None

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        progress("fetching", EngineState.DOWNLOADING)
        await trio.sleep(LOAD_SECONDS / 2)
        progress("loading weights 40 %")
        await trio.sleep(LOAD_SECONDS / 2)
        if self.failure is not None:
            raise self.failure
        await super().run(ready, progress)


class Maker:
    """Makes engines and remembers them."""

    def __init__(self) -> None:
        self.made: list[SlowEngine] = []
        self.failure: EngineStartFailed | None = None

    def __call__(self) -> SlowEngine:
        engine = SlowEngine("m", requests_max=2)
        engine.failure = self.failure
        self.made.append(engine)
        return engine


REQUEST = EngineRequest(
    RequestId(bytes(16)),
    Endpoint.CHAT,
    ModelName("m"),
    {"messages": [{"role": "user", "content": "hi"}]},
)


@asynccontextmanager
async def hosted(
    maker: Maker, *, idle_seconds: float = 0.0
) -> AsyncIterator[tuple[HostedEngine, list[EngineState]]]:
    states: list[EngineState] = []

    def note() -> None:
        states.append(engine.state)

    engine = HostedEngine(
        EnginePlan("fake", "fake", maker, idle_seconds=idle_seconds, waiting_max=4), note
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await engine.settled.wait()
        yield engine, states
        nursery.cancel_scope.cancel()


async def ask(engine: HostedEngine) -> str:
    sink = RecordingSink()
    place = engine.take_place()
    try:
        await place.wait()
        await engine.stream(replace(REQUEST), sink)
    finally:
        place.leave()
    return sink.written


async def test_states_follow_the_start(autojump_clock: object) -> None:
    async with hosted(Maker()) as (engine, states):
        assert states == [EngineState.STARTING, EngineState.DOWNLOADING, *states[2:]]
        assert states[-1] is engine.state is EngineState.RUNNING
        assert await ask(engine) == ANSWER


async def test_nothing_is_offered_before_it_is_ready(autojump_clock: object) -> None:
    engine = HostedEngine(EnginePlan("fake", "fake", Maker()), lambda: None)
    assert not engine.offered()
    assert engine.health is Health.OFFLINE
    with pytest.raises(Overloaded, match="not ready"):
        engine.take_place()


async def test_an_idle_engine_is_unloaded_and_loaded_on_demand(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker, idle_seconds=60) as (engine, states):
        await trio.sleep(59)
        assert engine.state is EngineState.RUNNING
        assert await ask(engine) == ANSWER
        await trio.sleep(59)
        assert engine.state is EngineState.RUNNING, "the request counts as use"
        await trio.sleep(2)
        assert engine.state is EngineState.STOPPED
        assert maker.made[0].health() is Health.OFFLINE
        assert states[-2:] == [EngineState.STOPPING, EngineState.STOPPED]
        (model,) = engine.offered()
        assert model.state is EngineState.STOPPED, "it can be asked for, and loads first"
        assert engine.health is Health.HEALTHY
        started = trio.current_time()
        assert await ask(engine) == ANSWER
        assert trio.current_time() - started == pytest.approx(LOAD_SECONDS)
        assert engine.offered()[0].state is EngineState.RUNNING
        assert len(maker.made) == 2


async def test_a_running_request_keeps_it_loaded(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker, idle_seconds=10) as (engine, _), trio.open_nursery() as nursery:
        maker.made[0].hold()
        nursery.start_soon(ask, engine)
        await trio.sleep(100)
        assert engine.state is EngineState.RUNNING
        maker.made[0].release()


async def test_without_idle_seconds_it_stays_for_ever(autojump_clock: object) -> None:
    async with hosted(Maker()) as (engine, _):
        await trio.sleep(80_000)
        assert engine.state is EngineState.RUNNING


async def test_requests_that_come_together_load_it_once(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker, idle_seconds=10) as (engine, _):
        await trio.sleep(11)
        assert engine.state is EngineState.STOPPED
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, engine)
            await wait_all_tasks_blocked()
            assert (engine.places.running, engine.places.waiting) == (2, 3)
        assert len(maker.made) == 2


async def test_a_failing_load_fails_who_waits_for_it(autojump_clock: object) -> None:
    maker = Maker()
    engine = HostedEngine(EnginePlan("fake", "fake", maker, idle_seconds=10), lambda: None)

    async def run_until_given_up() -> None:
        with pytest.raises(EngineStartFailed, match="there is no CUDA"):
            await engine.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_until_given_up)
        await engine.settled.wait()
        await trio.sleep(11)
        assert engine.state is EngineState.STOPPED
        maker.failure = EngineStartFailed("there is no CUDA")
        with pytest.raises(EngineFailed, match="could not be loaded"):
            await ask(engine)
    assert engine.state is EngineState.ERROR
    assert engine.detail == "there is no CUDA"
    assert not engine.offered()


async def test_a_missing_package_is_a_state_of_its_own(autojump_clock: object) -> None:
    maker = Maker()
    maker.failure = EngineStartFailed("pip install it", not_installed=True)
    engine = HostedEngine(EnginePlan("fake", "fake", maker), lambda: None)
    with pytest.raises(EngineStartFailed, match="pip install it"):
        await engine.run()
    assert engine.state is EngineState.NOT_INSTALLED
    assert engine.settled.is_set()


async def test_an_engine_that_died_is_not_offered_until_it_is_back(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _):
        maker.made[0].crash()
        assert not engine.offered()
        assert engine.state is EngineState.STARTING
        maker.made[0].revive()
        assert engine.offered()
        assert engine.state is EngineState.RUNNING


async def test_its_owner_unloads_and_loads_it(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _):
        await engine.unload_now()
        assert engine.state is EngineState.STOPPED
        assert not engine.offered(), "without idle_unload nobody but its owner loads it"
        await engine.load_now()
        assert await ask(engine) == ANSWER
        assert len(maker.made) == 2


async def test_unloading_lets_running_answers_end(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _), trio.open_nursery() as nursery:
        maker.made[0].hold()
        answers: list[str] = []

        async def keep() -> None:
            answers.append(await ask(engine))

        nursery.start_soon(keep)
        await wait_all_tasks_blocked()
        nursery.start_soon(engine.unload_now)
        await wait_all_tasks_blocked()
        assert engine.state is EngineState.STOPPING
        maker.made[0].release()
        await wait_all_tasks_blocked()
        assert answers == [ANSWER]
        assert engine.state is EngineState.STOPPED


async def test_load_counts_who_waits_here(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _), trio.open_nursery() as nursery:
        maker.made[0].hold()
        for _ in range(3):
            nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked()
        load = engine.load()
        assert (load.load, load.running, load.waiting) == (1.0, 2, 1)
        maker.made[0].release()


async def test_capabilities_that_change_are_offered(autojump_clock: object) -> None:
    """An upstream has another model: the engine says `ready` again."""
    maker = Maker()
    async with hosted(maker) as (engine, states):
        made = maker.made[0]
        told = len(states)
        made.revive()
        assert len(states) == told, "nothing is new"
        other = replace(made.capabilities().models[0], name=ModelName("other"))
        changed = Capabilities("fake", (other,), 9, owner_only=True)
        made.capabilities = lambda: changed  # type: ignore[method-assign]
        made.revive()
        assert len(states) == told + 1, "the mesh is told"
        assert [model.name for model in engine.offered()] == ["other"]
        assert engine.places.limit == 9
        assert engine.owner_only


async def test_unloading_returns_though_a_request_has_it_loaded_again(
    autojump_clock: object,
) -> None:
    maker = Maker()
    async with hosted(maker, idle_seconds=60) as (engine, _), trio.open_nursery() as nursery:
        maker.made[0].hold()
        nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked()
        with trio.fail_after(2 * LOAD_SECONDS):
            async with trio.open_nursery() as unloading:
                unloading.start_soon(engine.unload_now)
                await wait_all_tasks_blocked()
                unloading.start_soon(ask, engine)
                await wait_all_tasks_blocked()
                maker.made[0].release()
        assert len(maker.made) == 2


@pytest.mark.parametrize("at_seconds", [0.0, 1.0, LOAD_SECONDS - 1, LOAD_SECONDS + 1])
async def test_unloading_twice_returns_twice_whenever(
    at_seconds: float, autojump_clock: object
) -> None:
    """While it starts, runs and is unloaded already; its start counts as settled then."""
    engine = HostedEngine(EnginePlan("fake", "fake", Maker()), lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await wait_all_tasks_blocked()
        await trio.sleep(at_seconds)
        with trio.fail_after(1):
            async with trio.open_nursery() as both:
                both.start_soon(engine.unload_now)
                both.start_soon(engine.unload_now)
            await engine.unload_now()
            await engine.settled.wait()
        assert engine.state is EngineState.STOPPED
        nursery.cancel_scope.cancel()


async def test_requests_in_the_queue_do_not_undo_what_the_owner_unloads(
    autojump_clock: object,
) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _), trio.open_nursery() as nursery:
        maker.made[0].hold()
        refused: list[Overloaded] = []

        async def ask_in_vain() -> None:
            with pytest.raises(Overloaded, match="not ready") as caught:
                await ask(engine)
            refused.append(caught.value)

        for _ in range(2):
            nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask_in_vain)
        nursery.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        nursery.start_soon(engine.unload_now)
        await wait_all_tasks_blocked()
        maker.made[0].release()
        await trio.sleep(LOAD_SECONDS * 2)
        assert engine.state is EngineState.STOPPED
        assert (len(refused), len(maker.made)) == (2, 1)
        assert engine.load().running == engine.load().waiting == 0


async def test_loading_is_given_up_when_it_is_unloaded_meanwhile(autojump_clock: object) -> None:
    maker = Maker()
    async with hosted(maker) as (engine, _):
        await engine.unload_now()
        async with trio.open_nursery() as nursery:

            async def load_in_vain() -> None:
                with pytest.raises(EngineStartFailed, match="unloaded meanwhile"):
                    await engine.load_now()

            nursery.start_soon(load_in_vain)
            await wait_all_tasks_blocked()
            await engine.unload_now()
        assert (engine.state, len(maker.made)) == (EngineState.STOPPED, 2)


async def test_an_engine_that_is_unloaded_stays_so_whatever_it_says(
    autojump_clock: object,
) -> None:
    """Its server is restarted, or its models change, while it may finish its answers."""
    maker = Maker()
    async with hosted(maker) as (engine, _), trio.open_nursery() as nursery:
        made = maker.made[0]
        made.hold()
        nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked()
        nursery.start_soon(engine.unload_now)
        await wait_all_tasks_blocked()
        made.revive()
        assert engine.state is EngineState.STOPPING
        made.release()
        await wait_all_tasks_blocked()
        assert engine.state is EngineState.STOPPED
        assert engine.load() == Load(), "nothing is left of its numbers"


class Buggy(FakeEngine):
    """What a plug-in may do."""

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        ready()
        raise ExceptionGroup("of its own", [KeyError("no"), ExceptionGroup("", [ValueError("x")])])


class Leaving(FakeEngine):
    """Returns though nobody told it to."""

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        ready()


class Both(FakeEngine):
    """Fails in an orderly way, and its own nursery has more to say."""

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        failed = ExceptionGroup("", [EngineStartFailed("no CUDA", not_installed=True)])
        raise ExceptionGroup("of its own", [failed])


@pytest.mark.parametrize(
    ("kind", "words", "state"),
    [
        (Buggy, "crashed", EngineState.ERROR),
        (Leaving, "ended by itself", EngineState.ERROR),
        (Both, "no CUDA", EngineState.NOT_INSTALLED),
    ],
)
async def test_whatever_ends_an_engine_it_is_given_up_and_the_node_lives(
    kind: type[FakeEngine], words: str, state: EngineState
) -> None:
    engine = HostedEngine(EnginePlan("fake", "fake", lambda: kind("m")), lambda: None)
    with pytest.raises(EngineStartFailed, match=words):
        await engine.run()
    assert engine.state is state


async def test_settings_that_work_no_longer_are_a_failed_start(autojump_clock: object) -> None:
    """A key file was there when the node started, and is gone when the model is loaded again."""
    made = [FakeEngine("m")]

    def make() -> FakeEngine:
        if not made:
            raise ConfigError("key.txt cannot be read")
        return made.pop()

    engine = HostedEngine(EnginePlan("fake", "fake", make, idle_seconds=10), lambda: None)

    async def run_until_given_up() -> None:
        with pytest.raises(EngineStartFailed, match="cannot be read"):
            await engine.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_until_given_up)
        await engine.settled.wait()
        await trio.sleep(11)
        with pytest.raises(EngineFailed, match="could not be loaded"):
            await ask(engine)
    assert engine.state is EngineState.ERROR
