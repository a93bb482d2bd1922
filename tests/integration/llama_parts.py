"""What the tests of the llama engine share: a running engine, questions, its processes."""

import contextlib
import os
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from aimo_node.domain.ids import Endpoint, ModelName, RequestId
from aimo_node.errors import EngineStartFailed
from aimo_node.ports.engine import EngineRequest
from aimo_node.testing.recording_sink import RecordingSink

HERE = Path(__file__).parent
STORY = "Tell me a sea story about Ada and a kite."
REAPER = "providers.children.reaper"


@asynccontextmanager
async def running(engine, told=None):
    """An engine that is ready; cancelled afterwards."""

    def progress(line, state=None):
        if told is not None:
            told.append(line)

    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, progress)
        with trio.fail_after(60):
            await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


def asked(endpoint, body, *, stream=True, salt="", model="tiny"):
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), endpoint, ModelName(model), body, stream, salt
    )


def request(text, stream=True, salt="", **fields):
    """A question in a chat."""
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    return asked(Endpoint.CHAT, body, stream=stream, salt=salt)


def completion(prompt, stream=True, **fields):
    body = {"prompt": prompt, "temperature": 0, **fields}
    return asked(Endpoint.COMPLETIONS, body, stream=stream)


async def answer(engine, asked):
    sink = RecordingSink()
    with trio.fail_after(60):
        await engine.stream(asked, sink)
    return sink


async def failure_of(engine):
    """Run an engine that cannot start; its sentence."""
    with trio.fail_after(60):
        with pytest.raises(EngineStartFailed) as caught:
            await engine.run(lambda: None, lambda line, state=None: None)
    return str(caught.value)


def processes_of(pid, folder):
    """Processes below `pid` that were started for `folder` and still run, reapers included."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
    return [child for child in found if str(folder) in " ".join(command_line(child))]


def children_of(pid, folder):
    """The same without reapers."""
    return [child for child in processes_of(pid, folder) if REAPER not in command_line(child)]


def reapers_of(pid, folder):
    return [child for child in processes_of(pid, folder) if REAPER in command_line(child)]


def command_line(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leftovers(folder):
    """Everything a llama engine may leave there, from whoever's point of view."""
    files = [path.name for path in folder.iterdir() if path.suffix in {".sock", ".run"}]
    ours = [
        f"process {process.pid}"
        for process in psutil.process_iter()
        if str(folder) in " ".join(command_line(process)) and process.pid != os.getpid()
    ]
    return files + ours


def start_program(name, argument):
    return subprocess.Popen(
        [sys.executable, HERE / name, argument],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )
