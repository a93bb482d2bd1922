"""Edge side and provider side together, over real links in memory, with an engine in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.dispatch.dispatcher import Dispatcher
from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.inference import InferenceRequest
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.domain.ids import Endpoint, ModelName, PeerId, Role
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import (
    Draining,
    ModelNotFound,
    Overloaded,
    ProviderNotFound,
    RequestTimeout,
    StreamInterrupted,
)
from aimo_node.routing.table import RoutingTable
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FAKE_ANSWER, FakeEngine, Fault
from aimo_node.testing.memory_network import MemoryMesh

ANSWER = "".join(FAKE_ANSWER)


@dataclass
class Bench:
    """An edge and some providers."""

    mesh: MemoryMesh
    dispatcher: Dispatcher
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    services: dict[str, ProviderService] = field(default_factory=dict)
    metrics: NodeMetrics = field(default_factory=NodeMetrics)


@asynccontextmanager
async def bench(
    *providers: str, requests_max: int = 4, silent: bool = False
) -> AsyncIterator[Bench]:
    """`silent`: an engine on hold has said nothing yet."""
    words = ("", *FAKE_ANSWER) if silent else FAKE_ANSWER
    async with trio.open_nursery() as nursery:
        mesh = MemoryMesh(nursery)
        edge = await mesh.add("edge", Role.EDGE)
        table = RoutingTable()
        made = Bench(mesh, Dispatcher(edge, table))
        for name in providers:
            engine = made.engines[name] = FakeEngine(
                "tiny", answer=words, requests_max=requests_max
            )
            service = made.services[name] = ProviderService(PeerId(name), made.metrics.provider)
            service.add(EnginePlan("fake", "fake", lambda engine=engine: engine))
            await mesh.add(name, Role.PROVIDER, service.handle)
            nursery.start_soon(service.run)
            await service.wait_settled()
            table.describe(
                PeerId("relay"),
                Descriptor(
                    PeerId(name),
                    1,
                    (ModelInfo(ModelName("tiny")),),
                    engine_state=EngineState.RUNNING,
                    requests_max=requests_max,
                ),
                trio.current_time(),
            )
        yield made
        nursery.cancel_scope.cancel()


def ask(
    model: str = "tiny", *, stream: bool = True, text: str = "hi", deadline: float = 30.0
) -> InferenceRequest:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return InferenceRequest(Endpoint.CHAT, model, json.dumps(body).encode(), stream, deadline)


async def read(bench: Bench, request: InferenceRequest) -> list[AnswerPart]:
    answer = await bench.dispatcher.open(request)
    parts: list[AnswerPart] = []
    try:
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await answer.receive()
    finally:
        answer.cancel()
    return parts


def said(parts: list[AnswerPart]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_comes_whole_and_in_order(stream: bool) -> None:
    async with bench("a") as made:
        parts = await read(made, ask(stream=stream))
        assert said(parts) == ANSWER
        assert isinstance(parts[-1], Finish)
        assert parts[-1].usage.completion_tokens == len(FAKE_ANSWER)
        assert made.dispatcher.running == 0


async def test_a_body_too_large_for_one_frame_arrives_whole() -> None:
    async with bench("a") as made:
        text = "x" * 1_500_000
        assert said(await read(made, ask(text=text))) == ANSWER
        assert made.engines["a"].requests[0].body["messages"][0]["content"] == text


async def test_the_engine_never_sees_the_pinning_prefix() -> None:
    peer = "12D3KooWQkVyGah7d4GY8c2jPBH6FCXPzASsN1YLckS51aYpESpg"
    async with bench(peer) as made:
        assert said(await read(made, ask(f"{peer}:tiny"))) == ANSWER
        assert made.engines[peer].requests[0].model == "tiny"


async def test_unknown_models_and_providers_are_refused_at_once() -> None:
    async with bench("a") as made:
        with pytest.raises(ModelNotFound, match="large"):
            await made.dispatcher.open(ask("large"))
        stranger = "12D3KooWAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        with pytest.raises(ProviderNotFound):
            await made.dispatcher.open(ask(f"{stranger}:tiny"))


async def test_a_provider_that_refuses_is_replaced_before_the_first_token() -> None:
    async with bench("a", "b") as made:
        answer = await made.dispatcher.open(ask())
        refusing = answer.provider
        made.engines[str(refusing)].fail_next(Fault.REFUSES)
        parts = await answer.receive()
        assert isinstance(parts[0], str)
        assert answer.provider != refusing
        assert answer.attempts == 2
        answer.cancel()


async def test_a_provider_lost_before_the_first_token_is_replaced() -> None:
    async with bench("a", "b", silent=True) as made:
        for engine in made.engines.values():
            engine.hold()
        answer = await made.dispatcher.open(ask())
        lost = answer.provider
        async with trio.open_nursery() as nursery:
            got: list[AnswerPart] = []

            async def take() -> None:
                got.extend(await answer.receive())

            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            made.mesh.remove(lost)
            await wait_all_tasks_blocked()
            for engine in made.engines.values():
                engine.release()
        assert got
        assert answer.provider != lost
        assert answer.attempts == 2
        answer.cancel()


async def test_a_provider_lost_after_the_first_token_ends_the_answer_with_an_error() -> None:
    async with bench("a", "b") as made:
        for engine in made.engines.values():
            engine.fail_next(Fault.BREAKS_OFF)
        answer = await made.dispatcher.open(ask())
        assert said(list(await answer.receive())) == FAKE_ANSWER[0]
        with pytest.raises(StreamInterrupted):
            await answer.receive()
        answer.cancel()


async def test_a_provider_at_its_limit_says_so_at_once() -> None:
    async with bench("a", requests_max=1) as made:
        made.engines["a"].hold()
        held = await made.dispatcher.open(ask())
        await wait_all_tasks_blocked()
        second = await made.dispatcher.open(ask())
        with pytest.raises(Overloaded, match="1 of 1") as caught:
            await second.receive()
        assert caught.value.retry_after_seconds == 1
        second.cancel()
        held.cancel()


async def test_a_consumer_that_leaves_stops_the_engine() -> None:
    async with bench("a") as made:
        made.engines["a"].hold()
        answer = await made.dispatcher.open(ask())
        await wait_all_tasks_blocked()
        assert made.engines["a"].load().running == 1
        answer.cancel()
        await wait_all_tasks_blocked()
        assert made.engines["a"].load().running == 0
        assert made.metrics.provider.running == 0
        assert made.metrics.provider.outcomes == {("chat", "cancelled"): 1}


async def test_the_deadline_ends_a_request_at_the_edge(autojump_clock) -> None:
    async with bench("a", silent=True) as made:
        made.engines["a"].hold()
        answer = await made.dispatcher.open(ask(deadline=2.0))
        with pytest.raises(RequestTimeout):
            await answer.receive()
        answer.cancel()


async def test_silence_is_reported_and_the_answer_goes_on(autojump_clock) -> None:
    async with bench("a", silent=True) as made:
        made.engines["a"].hold()
        answer = await made.dispatcher.open(ask())
        assert await answer.receive(silence_seconds=1.0) == ()
        made.engines["a"].release()
        assert said(list(await answer.receive(silence_seconds=1.0)))
        answer.cancel()


async def test_a_draining_edge_takes_nothing_new_and_finishes_what_runs() -> None:
    async with bench("a") as made:
        made.engines["a"].hold()
        answer = await made.dispatcher.open(ask())
        made.dispatcher.drain()
        with pytest.raises(Draining):
            await made.dispatcher.open(ask())
        made.engines["a"].release()
        parts: list[AnswerPart] = []
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await answer.receive()
        assert said(parts) == ANSWER
        answer.cancel()
        await made.dispatcher.wait_idle()


async def test_a_draining_provider_is_left_for_another() -> None:
    async with bench("a", "b") as made:
        first = await made.dispatcher.open(ask())
        made.services[str(first.provider)].drain()
        first.cancel()
        providers = set()
        for _ in range(3):
            answer = await made.dispatcher.open(ask())
            await answer.receive()
            providers.add(answer.provider)
            answer.cancel()
        assert providers == {"a", "b"} - {first.provider}


async def test_two_consumers_never_share_a_cache_salt() -> None:
    async with bench("a") as made:
        for consumer in ("one", "two", "one"):
            request = ask()
            await read(
                made,
                InferenceRequest(
                    request.endpoint, "tiny", request.body, True, 30.0, consumer=consumer
                ),
            )
        salts = [request.salt for request in made.engines["a"].requests]
        assert salts[0] == salts[2] != salts[1]


async def test_whole_answer_with_half_a_character_in_it_arrives() -> None:
    async with bench("a") as made:
        made.engines["a"].answer = ("so ", "\ud83d", " it is")
        assert said(await read(made, ask(stream=False))) == "so ? it is"
