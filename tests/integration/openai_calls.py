"""What tests of the openai engine share: settings, requests, and running it."""

import uuid
from contextlib import asynccontextmanager

import pytest
import trio

from aimo_node.domain.ids import Endpoint, ModelName, RequestId
from aimo_node.errors import EngineStartFailed
from aimo_node.ports.engine import EngineRequest, EngineSettings
from aimo_node.testing.recording_sink import RecordingSink
from providers.engines.openai_http import create


def silent(line, **_state):
    """Progress nobody reads."""


def settings(folder, endpoint, *arguments, **more):
    return EngineSettings(folder, endpoint=endpoint, engine_args=arguments, **more)


@asynccontextmanager
async def running(engine, on_ready=None):
    """The engine once it is ready; `on_ready` is called each time it says so."""
    ready = trio.Event()

    def tell():
        ready.set()
        if on_ready is not None:
            on_ready()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, tell, silent)
        with trio.fail_after(30):
            await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


def request(stream=True, model="stand-in", endpoint=Endpoint.CHAT, salt="", **fields):
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), endpoint, ModelName(model), body, stream, salt
    )


def embed(text, model="stand-in", **fields):
    return EngineRequest(
        RequestId(uuid.uuid4().bytes),
        Endpoint.EMBEDDINGS,
        ModelName(model),
        {"input": text, **fields},
        stream=False,
    )


async def answer(engine, asked):
    sink = RecordingSink()
    with trio.fail_after(30):
        await engine.stream(asked, sink)
    return sink


async def refused(engine, asked, error):
    """The error of a request that must fail before anything is written."""
    sink = RecordingSink()
    with trio.fail_after(30), pytest.raises(error) as caught:
        await engine.stream(asked, sink)
    assert not sink.parts
    return caught.value


async def failure(folder, *arguments, **more):
    """Run an engine that cannot start; its sentence."""
    with trio.fail_after(30), pytest.raises(EngineStartFailed) as caught:
        await create(settings(folder, *arguments, **more)).run(lambda: None, silent)
    return str(caught.value)
