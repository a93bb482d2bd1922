"""The llama engine with its real child process and the demo model."""

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import trio

from aimo_node.domain.ids import Endpoint, FinishReason
from aimo_node.domain.models import Feature, Health
from aimo_node.errors import EngineFailed, EngineStartFailed, InvalidRequest
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from providers.children.supervisor import RestartPolicy
from providers.demo_model import GGUF_FILE, digests, gguf_path
from providers.engines.llama import LlamaEngine, create
from providers.model_digest import ModelParts, model_digest
from tests.integration.llama_parts import (
    STORY,
    answer,
    children_of,
    failure_of,
    is_alive,
    processes_of,
    request,
    running,
    start_program,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


async def test_demo_model_answers_and_says_what_it_is(folder):
    told = []
    async with running(create(EngineSettings(folder)), told) as engine:
        sink = await answer(engine, request("What is 3+4?"))
        (model,) = engine.capabilities().models
    assert sink.written == "7"
    assert sink.end.reason is FinishReason.STOP
    assert model.name == "tiny"
    assert model.context_tokens == 1024
    assert model.digest == model_digest(ModelParts((bytes.fromhex(digests()[GGUF_FILE]),)))
    assert model.endpoints == (Endpoint.CHAT, Endpoint.COMPLETIONS)
    assert Feature.TOOLS in model.features
    assert any(line.startswith("loading tiny") for line in told)


async def test_eight_streams_at_once_are_each_answered_right(folder):
    async with running(create(EngineSettings(folder, requests_max=8))) as engine:
        sinks = [RecordingSink() for _ in range(8)]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number, sink in enumerate(sinks, start=2):
                    asked = request(f"What is {number}+4?")
                    nursery.start_soon(engine.stream, asked, sink)
    assert [sink.written for sink in sinks] == [str(number + 4) for number in range(2, 10)]


async def test_tool_calls_are_streamed_and_given_whole(folder):
    question = "What is the weather in Paris?"
    async with running(create(EngineSettings(folder))) as engine:
        streamed = await answer(engine, request(question, tools=[WEATHER]))
        whole = await answer(engine, request(question, stream=False, tools=[WEATHER]))
    pieces = [choice["delta"]["tool_calls"][0]["function"] for choice in streamed.choices]
    (choice,) = whole.choices
    function = choice["message"]["tool_calls"][0]["function"]
    assert pieces[0]["name"] == function["name"] == "get_weather"
    assert "".join(piece["arguments"] for piece in pieces) == '{"city": "Paris"}'
    assert function["arguments"] == '{"city": "Paris"}'
    assert streamed.end.reason is whole.end.reason is FinishReason.TOOL_CALLS


async def test_json_schema_binds_the_answer(folder):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    async with running(create(EngineSettings(folder))) as engine:
        sink = await answer(engine, request("hi", response_format=response_format))
    assert sink.written.replace(" ", "") in {'{"ok":true}', '{"ok":false}'}


async def test_prompt_cache_is_never_shared_between_consumers(folder):
    """Otherwise one could find out by the time it takes what another has asked."""
    async with running(create(EngineSettings(folder))) as engine:
        cached = []
        for salt in ("alice", "alice", "bob", "carol", "dave", "eve", "alice"):
            sink = await answer(engine, request("What is 3+4?", salt=salt))
            cached.append(sink.end.usage.cached_tokens)
    assert cached[1] > 0
    assert cached[:1] + cached[2:] == [0] * 6


async def test_requests_the_model_cannot_serve_are_the_callers_fault(folder):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    async with running(create(EngineSettings(folder))) as engine:
        for fields in (
            {"temperature": "hot"},
            {"messages": [{"role": "user", "content": [picture]}]},
            {"tool_choice": "bogus", "tools": [WEATHER]},
        ):
            with pytest.raises(InvalidRequest):
                await engine.stream(request("x", **fields), RecordingSink())


async def test_killed_child_fails_its_streams_and_comes_back_by_itself(folder):
    plan = create(EngineSettings(folder)).plan
    async with running(LlamaEngine(plan, RestartPolicy(delay_seconds=0.05))) as engine:
        (child,) = children_of(os.getpid(), folder)
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:

            async def expect_failure():
                with pytest.raises(EngineFailed):
                    await engine.stream(request(STORY, ignore_eos=True), sink)

            nursery.start_soon(expect_failure)
            await sink.first.wait()
            os.killpg(child.pid, signal.SIGKILL)
        assert sink.end is None
        await eventually(lambda: engine.health() is Health.OFFLINE, "its death is noticed")
        await eventually(lambda: engine.health() is Health.HEALTHY, "it comes back")
        assert (await answer(engine, request("What is 3+4?"))).written == "7"


async def test_hanging_child_is_replaced(folder):
    plan = create(EngineSettings(folder)).plan
    policy = RestartPolicy(
        delay_seconds=0.05,
        probe_every_seconds=0.1,
        probe_timeout_seconds=0.2,
        probes_failed_max=2,
    )
    async with running(LlamaEngine(plan, policy)) as engine:
        (child,) = children_of(os.getpid(), folder)
        child.suspend()
        await eventually(lambda: engine.health() is Health.DEGRADED, "it is suspected")
        await eventually(lambda: not is_alive(child.pid), "it is killed")
        await eventually(lambda: engine.health() is Health.HEALTHY, "another one serves")


async def test_child_that_dies_again_and_again_is_given_up(folder):
    plan = create(EngineSettings(folder)).plan
    policy = RestartPolicy(delay_seconds=0.01, deaths_max=1)

    async def kill_every_child():
        while True:
            for child in children_of(os.getpid(), folder):
                if (folder / "llama.sock").exists():
                    os.kill(child.pid, signal.SIGKILL)
            await trio.sleep(0.01)

    engine = LlamaEngine(plan, policy)
    ready = trio.Event()
    with pytest.RaisesGroup(pytest.RaisesExc(EngineStartFailed, match="gave up after 2 deaths")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run, ready.set, lambda line: None)
            await ready.wait()
            with trio.fail_after(30):
                await kill_every_child()
    assert engine.health() is Health.OFFLINE


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a child dies a little later")
async def test_child_dies_with_its_node_even_while_it_holds_pythons_lock():
    """Loading weights, llama.cpp holds the lock for as long as it takes; no thread could run."""
    parent = start_program("spinning_child.py", "parent")
    try:
        with parent.stderr as output:
            grandchild = int(await trio.to_thread.run_sync(output.readline))
        (child,) = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    try:
        await eventually(lambda: not is_alive(child.pid), "the child is gone")
        await eventually(lambda: not is_alive(grandchild), "and what it had started")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


async def test_run_cancelled_at_any_moment_leaves_nothing(folder):
    for delay_seconds in (0, 0.01, 0.03, 0.06, 0.1, 0.15):
        engine = create(EngineSettings(folder))
        with trio.move_on_after(delay_seconds):
            await engine.run(lambda: None, lambda line: None)
        assert not list(folder.glob("*.sock"))
        assert not processes_of(os.getpid(), folder)


async def test_second_node_on_the_same_state_is_refused(folder):
    async with running(create(EngineSettings(folder))):
        sentence = await failure_of(create(EngineSettings(folder)))
    assert sentence.startswith("another llama engine ")
    assert "is a node with this --state running?" in sentence


def test_model_is_named_by_its_file_or_its_owner(folder):
    path = folder / "Some-Model-Q4.gguf"
    path.write_bytes(gguf_path().read_bytes())
    assert create(EngineSettings(folder, str(path))).plan.name == "Some-Model-Q4"
    assert create(EngineSettings(folder, str(path), served_name="mine")).plan.name == "mine"
    assert create(EngineSettings(folder, "tiny")).plan.weights == gguf_path()


async def test_state_folder_too_deep_for_a_socket_works(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with running(create(EngineSettings(deep))) as engine:
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
    assert not list(deep.glob("*.sock"))


async def test_log_is_private(folder):
    async with running(create(EngineSettings(folder))):
        pass
    assert (folder / "llama.log").stat().st_mode & 0o077 == 0
