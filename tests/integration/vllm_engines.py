"""vllm engines that run a stand-in, what is asked of them, and what they consist of."""

import uuid
from contextlib import asynccontextmanager

import psutil
import pytest
import trio

from aimo_node.domain.ids import Endpoint, ModelName, RequestId
from aimo_node.domain.models import EngineState
from aimo_node.errors import (
    EngineFailed,
    EngineStartFailed,
)
from aimo_node.ports.engine import EngineRequest, EngineSettings
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.vllm_standin import ANSWER
from providers.children import orphans
from providers.children.supervisor import RestartPolicy
from providers.engines.vllm import VllmEngine, create

SAID = "".join(ANSWER)
QUICK = RestartPolicy(delay_seconds=0.05, probe_every_seconds=0.1)


def settings(folder, python, *arguments, **more):
    given = ["--python", str(python), *arguments]
    return EngineSettings(folder, "somebody/stand-in", engine_args=given, **more)


def made(folder, python, *arguments, policy=QUICK, **more):
    return VllmEngine(create(settings(folder, python, *arguments, **more)).plan, policy)


def ignore(line, state=EngineState.STARTING):
    """Progress is for people."""


@asynccontextmanager
async def running(engine, progress=ignore):
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, progress)
        with trio.fail_after(30):
            await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


def request(text="hello there", *, stream=True, salt="", model="somebody/stand-in", **fields):
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return of(Endpoint.CHAT, body, stream=stream, salt=salt, model=model)


def of(endpoint, body, *, stream=True, salt="", model="somebody/stand-in"):
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), endpoint, ModelName(model), body, stream, salt
    )


async def answer(engine, asked):
    sink = RecordingSink()
    with trio.fail_after(30):
        await engine.stream(asked, sink)
    return sink


def run_of(folder):
    run = orphans.read_run(folder / "vllm.run")
    assert run is not None
    return run


def family(folder):
    """Server, engine core and worker, in the order in which they were born."""
    return sorted(orphans.members(run_of(folder)))


def working_in(folder):
    return [
        one.pid
        for one in psutil.process_iter(["cwd", "status"])
        if one.info["cwd"] == str(folder) and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


def traces_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "vllm.log")


@asynccontextmanager
async def streaming(engine, **fields):
    """A request that goes on without end, and must fail before the block is left."""
    sink = RecordingSink()

    async def expect_failure():
        with pytest.raises(EngineFailed):
            await engine.stream(request("standin=endless", **fields), sink)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_failure)
            await sink.first.wait()
            yield
    assert sink.end is None


async def failure_of(engine, progress=ignore):
    """Run an engine that cannot start."""
    with trio.fail_after(30):
        with pytest.raises(EngineStartFailed) as caught:
            await engine.run(lambda: None, progress)
    return caught.value
