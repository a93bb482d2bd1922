"""What an engine's process leaves is cleared away, whoever of node, reaper and engine is killed."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from aimo_node.errors import EngineStartFailed
from aimo_node.testing.engine_contract import eventually
from providers.children import orphans
from providers.children.orphans import Process, Run
from providers.children.safeguard import clear_orphans
from tests.integration.reaped_parent import start

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ps tells less")


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


def is_alive(pid):
    return orphans.is_alive(orphans.process(pid))


def reapers_of(folder):
    found = []
    for candidate in psutil.process_iter(["cmdline"]):
        line = candidate.info["cmdline"] or []  # a zombie has none
        if "providers.children.reaper" in line and str(folder / "engine.run") in line:
            found.append(candidate)
    return found


def start_program(*command, folder="/"):
    return subprocess.Popen(
        command,
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )


@asynccontextmanager
async def killed_node(folder, also_reaper=False):
    """The numbers of child and grandchild of a node that was killed at once."""
    parent = start_program(sys.executable, HERE / "reaped_parent.py", folder)
    numbers = []
    try:
        with parent.stdout as output:
            line = await trio.to_thread.run_sync(output.readline)
        numbers = [int(number) for number in line.split()]
        assert all(is_alive(number) for number in numbers)
        (reaper,) = reapers_of(folder)
        if also_reaper:
            reaper.suspend()  # so that it cannot act before it is killed
        parent.kill()
        parent.wait()
        if also_reaper:
            reaper.kill()
        yield numbers
    finally:
        parent.kill()
        parent.wait()
        for number in numbers:
            if is_alive(number):
                os.kill(number, signal.SIGKILL)


def memory_of(pid):
    """The shared memory that a child made, where the system shows it."""
    return Path(f"/dev/shm/psm_aimo-{pid}")


def traces_in(folder):
    return sorted(path.name for path in folder.iterdir())


async def test_killed_node_leaves_no_process_and_no_file(folder):
    async with killed_node(folder) as (child, grandchild):
        await eventually(lambda: not is_alive(child), "the child is gone")
        await eventually(lambda: not is_alive(grandchild), "and its own child")
        await eventually(lambda: not traces_in(folder), "and every file")
        await eventually(lambda: not reapers_of(folder), "and the reaper")
        assert not memory_of(child).exists()


async def test_next_start_clears_away_what_node_and_reaper_could_not(folder):
    async with killed_node(folder, also_reaper=True) as (child, grandchild):
        assert is_alive(child)
        assert memory_of(child).exists()
        assert traces_in(folder) == ["engine.run", "engine.sock", "sockets"]
        with trio.fail_after(30):
            await clear_orphans(folder / "engine.run", "test")
        assert not is_alive(child)
        assert not is_alive(grandchild)
        assert not memory_of(child).exists()
        assert traces_in(folder) == []


async def test_orphans_are_found_also_without_their_leader(folder):
    async with killed_node(folder, also_reaper=True) as (child, grandchild):
        os.kill(child, signal.SIGKILL)
        await eventually(lambda: not is_alive(child), "the leader is gone")
        assert is_alive(grandchild)
        with trio.fail_after(30):
            await clear_orphans(folder / "engine.run", "test")
        assert not is_alive(grandchild)


async def test_ended_child_leaves_nothing_and_its_reaper_goes_too(folder):
    child, grandchild = await start(folder)
    assert len(reapers_of(folder)) == 1
    with trio.fail_after(30):
        await child.end()
    assert not is_alive(child.pid)
    assert not is_alive(grandchild)
    assert traces_in(folder) == []
    assert reapers_of(folder) == []
    assert not memory_of(child.pid).exists()


async def test_child_that_ignores_sigterm_is_killed_after_its_grace(folder):
    child, grandchild = await start(folder, grace_seconds=0.3)
    started = trio.current_time()
    with trio.fail_after(30):
        await child.end()
    assert trio.current_time() - started >= 0.3
    assert not is_alive(grandchild)
    assert traces_in(folder) == []


async def test_killed_reaper_is_replaced(folder):
    child, _ = await start(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.copy_log)
        (first,) = reapers_of(folder)
        first.kill()
        await eventually(
            lambda: [one.pid for one in reapers_of(folder)] not in ([], [first.pid]),
            "another one is there",
        )
        nursery.cancel_scope.cancel()
    await child.end()
    assert reapers_of(folder) == []


async def test_engine_of_a_living_node_is_left_alone(folder):
    child, grandchild = await start(folder)
    with pytest.raises(EngineStartFailed, match=f"started by process {os.getpid()}"):
        await clear_orphans(folder / "engine.run", "test")
    assert is_alive(child.pid)
    assert is_alive(grandchild)
    await child.end()


async def test_stranger_with_the_number_of_an_earlier_engine_is_left_alone(folder):
    """After a restart of the machine the numbers are given out anew."""
    stranger = start_program("sleep", "600", folder=folder)
    try:
        gone = Process(1, "another boot:1")
        run = Run(gone, Process(stranger.pid, "another boot:2"), str(folder), ())
        orphans.write_run(run, folder / "engine.run")
        assert orphans.members(run) == []
        await clear_orphans(folder / "engine.run", "test")
        assert stranger.poll() is None
        assert traces_in(folder) == []
    finally:
        stranger.kill()
        stranger.communicate()


async def test_session_of_a_stranger_is_left_alone_when_its_leader_is_gone(folder):
    """It may have the number, but it does not work in the engine's folder."""
    program = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    leader = start_program(sys.executable, "-S", "-c", program)
    with leader.stdout as output:
        number = int(output.readline())
    leader.wait()
    try:
        run = Run(Process(1, ""), Process(leader.pid, "1"), str(folder), ())
        assert orphans.members(run) == []
        in_its_folder = Run(Process(1, ""), Process(leader.pid, "1"), "/", ())
        assert orphans.members(in_its_folder) == [number]
    finally:
        os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"node": 1}', b"[" * 40_000])
async def test_damaged_run_file_is_no_obstacle(folder, content):
    (folder / "engine.run").write_bytes(content)
    await clear_orphans(folder / "engine.run", "test")
    assert orphans.read_run(folder / "engine.run") is None
