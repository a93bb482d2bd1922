"""Whoever is killed, nothing is left of a llama engine; whoever leaves, its model stops."""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
import trio

from aimo_node.domain.models import Health
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing.engine_contract import eventually, eventually_async
from aimo_node.testing.recording_sink import RecordingSink
from providers.children.orphans import Process, Run, process, write_run
from providers.children.supervisor import RestartPolicy
from providers.engines.llama import LlamaEngine, create
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from tests.integration.llama_parts import (
    STORY,
    answer,
    children_of,
    command_line,
    is_alive,
    leftovers,
    processes_of,
    reapers_of,
    request,
    running,
    start_program,
)

CLEARED_SECONDS = 5
"""From a SIGKILL to nothing left."""

STOPPED_SECONDS = 0.25
"""From a cancel to an engine that generates no more."""


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


@pytest.fixture
async def node(folder):
    """A process with a llama engine that is ready; killed afterwards, if it still runs."""
    parent = start_program("orphan_parent.py", str(folder))
    try:
        with parent.stderr as output, trio.fail_after(30):
            while await trio.to_thread.run_sync(output.readline) != b"ready\n":
                assert parent.poll() is None
            yield parent
    finally:
        parent.kill()
        parent.wait()
        await eventually(lambda: not processes_of(os.getpid(), folder), "all are gone")


def kill(process):
    process.kill()
    process.wait()


def sockets_named_by_children_of(pid):
    told = [" ".join(command_line(child)) for child in psutil.Process(pid).children()]
    return [found[1] for line in told if (found := re.search(r'"socket": "([^"]+)"', line))]


async def nothing_left(folder):
    with trio.fail_after(CLEARED_SECONDS):
        await eventually(lambda: not leftovers(folder), "nothing is left")


async def test_killed_node_leaves_nothing_at_all(node, folder):
    (child,) = children_of(node.pid, folder)
    assert (folder / "llama.sock").exists()
    kill(node)
    await nothing_left(folder)
    assert not is_alive(child.pid)


async def test_killed_node_leaves_no_socket_in_a_folder_made_for_it(folder):
    deep = folder / ("d" * 100)
    deep.mkdir()
    parent = start_program("orphan_parent.py", str(deep))
    try:
        with parent.stderr as output, trio.fail_after(30):
            while await trio.to_thread.run_sync(output.readline) != b"ready\n":
                assert parent.poll() is None
        (socket,) = sockets_named_by_children_of(parent.pid)
        assert os.access(socket, os.F_OK)
    finally:
        kill(parent)
    await nothing_left(deep)
    assert not os.access(socket.rpartition("/")[0], os.F_OK)


async def test_next_start_clears_away_what_nobody_could(node, folder):
    """Node and reaper killed together: the child ends by itself, files stay until then."""
    (reaper,) = reapers_of(node.pid, folder)
    (child,) = children_of(node.pid, folder)
    os.kill(reaper.pid, signal.SIGSTOP)  # it must not see the node die
    kill(node)
    os.kill(reaper.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(child.pid), "the child died with its node")
    assert {"llama.sock", "llama.run"} <= set(leftovers(folder))
    async with running(create(EngineSettings(folder))) as engine:
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
    assert leftovers(folder) == []


@pytest.fixture
def orphan(folder):
    """Where no kernel helps, a child may outlive its node; here a patient program stands in."""
    program = subprocess.Popen(["sleep", "1000"], cwd=folder, start_new_session=True)
    node = Process(1, "before this machine was started")
    write_run(Run(node, process(program.pid), str(folder), ()), folder / "llama.run")
    yield program
    program.kill()
    program.wait()


async def test_next_start_ends_what_an_earlier_one_left_running(folder, orphan):
    async with running(create(EngineSettings(folder))) as engine:
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
        with trio.fail_after(CLEARED_SECONDS):
            assert await trio.to_thread.run_sync(orphan.wait) == -signal.SIGKILL
    assert leftovers(folder) == []


async def test_killed_reaper_is_replaced_and_the_engine_serves_on(folder):
    async with running(create(EngineSettings(folder))) as engine:
        (reaper,) = reapers_of(os.getpid(), folder)
        (child,) = children_of(os.getpid(), folder)
        reaper.kill()
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
        await eventually(
            lambda: [one.pid for one in reapers_of(os.getpid(), folder)] not in ([], [reaper.pid]),
            "there is another reaper",
        )
        assert is_alive(child.pid)
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
    assert leftovers(folder) == []


async def test_killed_child_comes_back_and_leaves_nothing_in_the_end(folder):
    plan = create(EngineSettings(folder)).plan
    async with running(LlamaEngine(plan, RestartPolicy(delay_seconds=0.05))) as engine:
        for _ in range(2):
            (child,) = children_of(os.getpid(), folder)
            os.kill(child.pid, signal.SIGKILL)
            await eventually(lambda: engine.health() is Health.OFFLINE, "its death is noticed")
            await eventually(lambda: engine.health() is Health.HEALTHY, "it comes back")
            assert len(processes_of(os.getpid(), folder)) == 2  # a child and its reaper
        assert (await answer(engine, request("What is 3+4?"))).written == "7"
    assert leftovers(folder) == []


async def test_second_engine_cannot_take_what_a_living_one_has(folder):
    async with running(create(EngineSettings(folder))) as engine:
        with pytest.raises(Exception, match="is a node with this --state running"):
            await create(EngineSettings(folder)).run(lambda: None, lambda line: None)
        assert (await answer(engine, request("What is 3+4?"))).written == "7"


async def generating(folder):
    """By llama.cpp's own count."""
    _, metrics = await ask_once(UnixUpstream(folder / "llama.sock"), "/metrics")
    return int(re.search(rb"requests_processing (\d+)", metrics)[1])


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_cancelled_answers_stop_being_generated(folder, stream):
    async with running(create(EngineSettings(folder, requests_max=4))) as engine:
        asked = request(STORY, stream=stream, ignore_eos=True)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(engine.stream, asked, RecordingSink())
            with trio.fail_after(30):
                await eventually_async(lambda: generating(folder), 4)
            nursery.cancel_scope.cancel()
        with trio.fail_after(STOPPED_SECONDS):
            await eventually_async(lambda: generating(folder), 0)


async def test_cancelled_one_of_several_answers_stops_them_all(folder):
    async with running(create(EngineSettings(folder, requests_max=1))) as engine:
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request(STORY, n=50, max_tokens=20), sink)
            await sink.first.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(STOPPED_SECONDS):
            await eventually_async(lambda: generating(folder), 0)
        assert engine.load().running == 0
        assert (await answer(engine, request("What is 3+4?"))).written == "7"


async def test_engine_killed_between_two_answers_fails_the_request(folder):
    async with running(create(EngineSettings(folder))) as engine:
        sink = RecordingSink()
        with pytest.RaisesGroup(EngineFailed):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.stream, request(STORY, n=50, max_tokens=20), sink)
                await sink.first.wait()
                engine.kill()
        assert sink.end is None
