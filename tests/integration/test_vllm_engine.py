"""What a vllm engine answers and offers, with a stand-in that behaves like vLLM 0.32."""

import contextlib
import os
import re
import signal
import tempfile
from pathlib import Path

import pytest
import trio

from aimo_node.domain.ids import Endpoint, FinishReason
from aimo_node.domain.models import Feature
from aimo_node.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
)
from aimo_node.testing.engine_contract import eventually, eventually_async
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.vllm_standin import ANSWER, CONTEXT_TOKENS, CONTINUED_AT, install
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from tests.integration.vllm_engines import (
    SAID,
    answer,
    made,
    of,
    request,
    running,
    working_in,
)

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


@pytest.fixture
def place():
    """A folder for the stand-in, and one for the engine's state."""
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        folder = Path(name)
        (folder / "state").mkdir(mode=0o700)
        yield folder


@pytest.fixture
def folder(place):
    return place / "state"


@pytest.fixture
def python(place):
    return install(place)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "fault", ["error-then-done", "abort", "no-reason", "silent-end", "garbage", "broken"]
)
async def test_every_bad_answer_is_a_failure_and_the_next_request_works(
    folder, python, fault, stream
):
    async with running(made(folder, python)) as engine:
        sink = RecordingSink()
        with trio.fail_after(30), pytest.raises(EngineFailed):
            await engine.stream(request(f"standin={fault}", stream=stream), sink)
        assert sink.end is None
        assert (await answer(engine, request())).written == SAID


async def test_cancelled_request_closes_its_socket_and_generation_stops(folder, python):
    """By the engine's own running count, as its metrics tell it."""
    async with running(made(folder, python)) as engine:

        async def generating():
            _, metrics = await ask_once(UnixUpstream(folder / "vllm.sock"), "/metrics")
            return int(re.search(rb"num_requests_running\{.*\} (\d+)", metrics)[1])

        for stream in (True, False):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    asked = request("standin=endless", stream=stream)
                    nursery.start_soon(engine.stream, asked, RecordingSink())
                await eventually_async(generating, 4)
                nursery.cancel_scope.cancel()
            with trio.fail_after(1):
                await eventually_async(generating, 0)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_tool_calls_end_only_with_arguments_that_are_json(folder, python, stream):
    async with running(made(folder, python)) as engine:
        good = await answer(engine, request("standin=call-good", stream=stream, tools=[TOOL]))
        assert good.end.reason is FinishReason.TOOL_CALLS
        cut = await answer(engine, request("standin=call-too-long", stream=stream, tools=[TOOL]))
        assert cut.end.reason is FinishReason.LENGTH
        empty = await answer(engine, request("standin=call-empty", stream=stream, tools=[TOOL]))
        assert '"{}"' in str(empty.choices).replace("'", '"')
        for fault in ("call-infinity", "call-nan", "call-cut", "call-list"):
            sink = RecordingSink()
            with pytest.raises(EngineFailed, match="not a JSON object"):
                await engine.stream(request(f"standin={fault}", stream=stream, tools=[TOOL]), sink)
            assert sink.end is None


async def test_load_is_what_the_metrics_tell(folder, python):
    async with running(made(folder, python, requests_max=10)) as engine:
        assert engine.load().running == 0
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                asked = request("standin=endless", salt="alice")
                nursery.start_soon(engine.stream, asked, RecordingSink())
            await eventually(lambda: engine.load().kv_used == 0.05, "the cache is filling")
            await eventually(lambda: engine.load().first_token_seconds == 0.25, "and counted")
            load = engine.load()
            assert (load.running, load.waiting, load.load) == (5, 0, 0.5)
            assert load.prefix_hits == pytest.approx(0.64)
            nursery.cancel_scope.cancel()
        assert engine.load().running == 0


async def test_prompt_cache_is_salted_by_consumer(folder, python):
    """The stand-in finds a prompt in its cache only under the salt it came with."""
    async with running(made(folder, python)) as engine:
        for salt in ("alice", "bob", "carol"):
            await answer(engine, request(salt=salt))
        await eventually(lambda: engine.load().first_token_seconds > 0, "it was scraped")
        assert engine.load().prefix_hits == 0


async def test_offer_is_what_it_serves(folder, python):
    arguments = ("--tool-call-parser", "hermes", "--lora-modules", "sql=/srv/sql", "law=/srv/law")
    async with running(made(folder, python, *arguments, requests_max=7)) as engine:
        offered = engine.capabilities()
        model, sql, law = offered.models
        assert (offered.engine, offered.requests_max) == ("vllm", 7)
        assert offered.version == "0.32.0"
        assert (model.name, sql.name, law.name) == ("somebody/stand-in", "sql", "law")
        assert model.context_tokens == sql.context_tokens == CONTEXT_TOKENS
        assert model.endpoints == (Endpoint.CHAT, Endpoint.COMPLETIONS)
        assert {Feature.TOOLS, Feature.JSON_SCHEMA, Feature.CONTINUE} <= set(model.features)
        assert Feature.VISION not in model.features
        assert (await answer(engine, request(model="law"))).written == SAID
        with pytest.raises(ModelNotFound):
            await engine.stream(request(model="cooking"), RecordingSink())


async def test_model_without_chat_template_offers_completions_only(folder, python):
    async with running(made(folder, python, "--standin-base")) as engine:
        (model,) = engine.capabilities().models
        assert model.endpoints == (Endpoint.COMPLETIONS,)
        assert Feature.CONTINUE not in model.features
        with pytest.raises(InvalidRequest, match="chat"):
            await engine.stream(request(), RecordingSink())
        asked = of(Endpoint.COMPLETIONS, {"prompt": "one two three"})
        assert await engine.count_tokens(asked) == 3


async def test_pooling_model_offers_embeddings_only(folder, python):
    async with running(made(folder, python, "--runner", "pooling")) as engine:
        (model,) = engine.capabilities().models
        assert model.endpoints == (Endpoint.EMBEDDINGS,)
        assert model.features == ()
        asked = of(Endpoint.EMBEDDINGS, {"input": ["one", "two"]}, stream=False)
        sink = await answer(engine, asked)
        assert [entry["embedding"] for entry in sink.choices] == [[0.5, 0.0], [0.5, 1.0]]


async def test_begun_answer_is_gone_on_with(folder, python):
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "1 2"}]
    async with running(made(folder, python)) as engine:
        asked = of(Endpoint.CHAT, {"messages": messages})
        assert (await answer(engine, asked)).written == "".join(ANSWER[CONTINUED_AT:])
        assert await engine.count_tokens(asked) == 3


async def test_more_tokens_than_the_context_are_refused_with_the_numbers(folder, python):
    async with running(made(folder, python)) as engine:
        with pytest.raises(ContextLengthExceeded, match=r"5000.*1024") as caught:
            await engine.stream(request(max_tokens=5000), RecordingSink())
        assert caught.value.param == "max_tokens"


@pytest.fixture(autouse=True)
def nothing_is_left(place):
    """Whatever a test did."""
    yield
    left = working_in(place / "state")
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
