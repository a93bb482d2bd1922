"""How a vllm engine starts, dies, comes back and ends: real processes, with a stand-in for vLLM."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import trio

from aimo_node.domain.ids import FinishReason
from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import (
    EngineFailed,
    EngineStartFailed,
)
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.vllm_standin import install
from providers.children import orphans
from providers.children.supervisor import RestartPolicy
from providers.engines.vllm import create
from tests.integration.vllm_engines import (
    SAID,
    answer,
    failure_of,
    family,
    ignore,
    made,
    request,
    run_of,
    running,
    streaming,
    traces_in,
    working_in,
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOGS = ROOT / "tests" / "unit" / "providers" / "vllm_logs"


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


async def test_server_that_is_told_to_end_breaks_its_streams_off(folder, python):
    """``finish_reason: abort`` and then ``[DONE]``: no legitimate end."""
    impatient = made(folder, python, "--shutdown-timeout", "0")
    async with running(impatient) as engine, streaming(engine):
        os.kill(family(folder)[0], signal.SIGTERM)


async def test_server_that_ends_in_peace_finishes_its_answers_and_refuses_new_ones(folder, python):
    """With a time to shut down it answers new requests with status 500."""
    slow = made(folder, python, "--standin-token-seconds", "0.3")
    async with running(slow) as engine:
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request(), sink)
            await sink.first.wait()
            os.kill(family(folder)[0], signal.SIGTERM)
            await eventually(lambda: "shutdown" in (folder / "vllm.log").read_text(), "it knows")
            with pytest.raises(EngineFailed):
                await engine.stream(request(), RecordingSink())
        assert sink.written == SAID
        assert sink.end.reason is FinishReason.STOP


@pytest.mark.parametrize("who", [0, 1, 2], ids=["server", "core", "worker"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_whoever_of_its_processes_is_killed_it_comes_back_and_leaves_no_orphan(
    folder, python, who, stream
):
    """A server without its core still answers, with status 503: it need not be probed for long."""
    patient = RestartPolicy(delay_seconds=0.05, probe_every_seconds=0.2, probes_failed_max=1000)
    async with running(made(folder, python, policy=patient)) as engine:
        before = family(folder)
        assert len(before) == 3
        if stream:
            async with streaming(engine):
                os.kill(before[who], signal.SIGKILL)
        else:
            os.kill(before[who], signal.SIGKILL)
        with trio.fail_after(5):
            await eventually(lambda: engine.health() is Health.OFFLINE, "it leaves routing")
        await eventually(lambda: engine.health() is Health.HEALTHY, "it comes back by itself")
        assert (await answer(engine, request())).written == SAID
        assert not set(before) & set(working_in(folder))
    assert working_in(folder) == []
    assert traces_in(folder) == []


async def test_hanging_server_is_replaced(folder, python):
    policy = RestartPolicy(
        delay_seconds=0.05,
        probe_every_seconds=0.1,
        probe_timeout_seconds=0.2,
        probes_failed_max=2,
    )
    async with running(made(folder, python, policy=policy)) as engine:
        before = family(folder)
        os.kill(before[0], signal.SIGSTOP)
        await eventually(lambda: engine.health() is Health.DEGRADED, "it is suspected")
        await eventually(lambda: engine.health() is Health.HEALTHY, "another one serves")
        assert not set(before) & set(working_in(folder))


async def test_child_that_dies_again_and_again_is_given_up(folder, python):
    policy = RestartPolicy(delay_seconds=0.01, deaths_max=1, probe_every_seconds=0.1)
    engine = made(folder, python, policy=policy)

    def kill_it():
        os.kill(run_of(folder).leader.number, signal.SIGKILL)

    with trio.fail_after(30), pytest.raises(EngineStartFailed, match="gave up after 2 deaths"):
        await engine.run(kill_it, ignore)
    assert engine.health() is Health.OFFLINE
    assert working_in(folder) == []


def start_orphan(folder):
    """A process as an earlier run would have left it."""
    program = "import time; time.sleep(600)"
    return subprocess.Popen(
        [sys.executable, "-S", "-c", program], cwd=folder, start_new_session=True
    )


def start_parent(folder, python):
    return subprocess.Popen(
        [sys.executable, HERE / "vllm_parent.py", folder, python],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def killed_node(folder, python, *, with_reaper=False):
    """Start a node and kill it at once; the processes its engine consisted of."""
    parent = start_parent(folder, python)
    try:
        with parent.stderr as output:
            assert await trio.to_thread.run_sync(output.readline) == b"ready\n"
        if with_reaper:
            (reaper,) = reapers_of(folder)
            reaper.suspend()  # so that it cannot act before it is killed
            parent.kill()
            reaper.kill()
            return []
        return family(folder)
    finally:
        parent.kill()
        parent.wait()


def reapers_of(folder):
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if "providers.children.reaper" in (one.info["cmdline"] or [])
        and str(folder / "vllm.run") in one.info["cmdline"]
    ]


async def test_killed_node_leaves_no_process_no_socket_and_no_run_file(folder, python):
    assert len(await killed_node(folder, python)) == 3
    await eventually(lambda: working_in(folder) == [], "all processes are gone")
    await eventually(lambda: traces_in(folder) == [], "and all they left")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a child dies a little later")
async def test_node_killed_with_its_reaper_leaves_no_process_and_the_next_one_clears_up(
    folder, python
):
    """The kernel itself ends the group; a socket it cannot remove."""
    await killed_node(folder, python, with_reaper=True)
    await eventually(lambda: working_in(folder) == [], "all processes are gone")
    assert traces_in(folder) == ["vllm.run", "vllm.sock", "vllm.tmp"]
    async with running(made(folder, python)) as engine:
        assert (await answer(engine, request())).written == SAID
    assert traces_in(folder) == []


async def test_orphans_of_an_earlier_run_are_ended_before_the_next(folder, python):
    """Neither the kernel nor the reaper could do it: here, because the parent never told them."""
    orphan = start_orphan(folder)
    try:
        gone = orphans.Process(orphan.pid, "another boot:1")
        run = orphans.Run(gone, orphans.process(orphan.pid), str(folder), ())
        orphans.write_run(run, folder / "vllm.run")
        (folder / "vllm.sock").touch()
        async with running(made(folder, python)) as engine:
            assert orphan.poll() is not None
            assert (await answer(engine, request())).written == SAID
    finally:
        orphan.kill()
        orphan.wait()


async def test_second_node_on_the_same_state_is_refused(folder, python):
    async with running(made(folder, python)) as engine:
        failure = await failure_of(made(folder, python))
        assert "another vllm engine" in str(failure)
        assert (await answer(engine, request())).written == SAID


async def test_child_is_asked_to_end_before_it_is_killed(folder, python):
    """A killed vLLM leaves shared memory behind."""
    async with running(made(folder, python)):
        pass
    assert "[shutdown]" in (folder / "vllm.log").read_text()


async def test_kill_does_not_ask(folder, python):
    engine = made(folder, python)
    async with running(engine):
        engine.kill()
        await eventually(lambda: working_in(folder) == [], "it is gone at once")
    assert "[shutdown]" not in (folder / "vllm.log").read_text()
    assert traces_in(folder) == []


async def test_late_kill_leaves_the_next_engine_alone(folder, python):
    """An engine that was unloaded may be killed once more after another one took its place."""
    first = made(folder, python)
    async with running(first):
        pass
    async with running(made(folder, python)) as second:
        first.kill()
        assert (await answer(second, request())).written == SAID


async def test_start_cancelled_at_any_moment_leaves_nothing(folder, python):
    for delay_seconds in (0, 0.02, 0.1, 0.2, 0.3, 0.5):
        with trio.move_on_after(delay_seconds):
            await made(folder, python).run(lambda: None, ignore)
        assert working_in(folder) == []
        assert traces_in(folder) == []


async def test_start_is_told_step_by_step(folder, python):
    told = []

    def note(line, state=EngineState.STARTING):
        told.append((line, state))

    async with running(made(folder, python), note):
        pass
    lines = [line for line, _ in told]
    assert "somebody/stand-in: loading weights 100 %" in lines
    assert "somebody/stand-in: compiling" in lines
    assert lines[-1] == "somebody/stand-in: checking what it serves"


async def test_download_is_told_by_what_has_come(folder, python, monkeypatch, place):
    """vLLM itself is silent about it."""
    blobs = place / "hub" / "models--somebody--stand-in" / "blobs"
    blobs.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    states = []

    def note(line, state=EngineState.STARTING):
        states.append(state)

    engine = made(folder, python, "--standin-silent")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, lambda: None, note)
        await eventually(lambda: working_in(folder) != [], "it is starting")
        size = 0
        with trio.fail_after(30):
            while EngineState.DOWNLOADING not in states:
                size += 1_000_000
                (blobs / "abc.incomplete").write_bytes(b"x" * size)
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_start_that_says_nothing_is_given_up(folder, python):
    failure = await failure_of(made(folder, python, "--standin-silent", "--silence-seconds", "1"))
    assert "said nothing for 1 s" in str(failure)
    assert "--silence-seconds" in str(failure)
    assert working_in(folder) == []


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("wrong-name", "the hub has no model somebody/stand-in"),
        ("full-disk", "the disk is full"),
        ("small-cache", "add --max-model-len 419200"),
    ],
)
async def test_failed_start_is_one_sentence_with_the_fix(folder, python, log, words):
    engine = made(folder, python, "--standin-fail", str(LOGS / f"{log}.log"))
    failure = await failure_of(engine)
    assert str(failure).startswith("vLLM cannot serve somebody/stand-in: ")
    assert words in str(failure)
    assert "vllm.log" in str(failure)
    assert "\n" not in str(failure)
    assert not failure.not_installed
    assert engine.health() is Health.OFFLINE
    assert traces_in(folder) == []


async def test_interpreter_without_vllm_is_told_apart(folder, place):
    bare = place / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o700)
    failure = await failure_of(made(folder, bare))
    assert failure.not_installed
    assert "pip install 'aimo-node[vllm]'" in str(failure)
    assert "--python" in str(failure)
    assert traces_in(folder) == []


async def test_node_without_vllm_says_so_before_it_starts_anything(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    failure = await failure_of(create(EngineSettings(folder, "somebody/stand-in")))
    assert failure.not_installed
    assert "this node's environment has no vLLM: pip install 'aimo-node[vllm]'" in str(failure)
    assert not (folder / "vllm.log").exists()


async def test_nothing_of_the_nodes_packages_is_on_the_childs_path(folder, place):
    """vLLM has other versions of the same packages; ours must never be found by its interpreter."""
    seen = place / "seen"
    package = place / "own" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "api_server.py").write_text(
        f"import sys\nopen({str(seen)!r}, 'w').write('\\n'.join(sys.path))\n"
    )
    bare = place / "bare"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={place}/own exec {sys.executable} -S "$@"\n')
    bare.chmod(0o700)
    await failure_of(made(folder, bare))
    path = seen.read_text().splitlines()
    assert str(place / "own") in path
    assert not [entry for entry in path if "site-packages" in entry]
    assert not [entry for entry in path if entry.startswith(str(ROOT))]


def short_folder_of(deep):
    """The folder that stands in for a deep one."""
    digest = hashlib.sha256(os.fsencode(deep)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"aimo-{os.getuid()}-{digest}"


async def test_state_folder_too_deep_for_sockets_works(place, python):
    deep = place / ("d" * 120)
    deep.mkdir()
    async with running(made(deep, python)) as engine:
        assert short_folder_of(deep).exists()
        assert (await answer(engine, request())).written == SAID
    assert traces_in(deep) == []
    assert not short_folder_of(deep).exists()


async def test_log_is_private(folder, python):
    async with running(made(folder, python)):
        pass
    assert (folder / "vllm.log").stat().st_mode & 0o077 == 0


def provider(place, *arguments):
    """`aimo provider` with these arguments: exit code and standard error."""
    environment = {name: value for name, value in os.environ.items() if "AIMO_" not in name}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "aimo_node", "provider", "--engine", "vllm"),
            *("--state", str(place / "node"), "--config", os.devnull, "--open", *arguments),
        ],
        cwd=place,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


NO_CUDA = "RuntimeError: Failed to infer device type, please set the environment variable"
TOO_SMALL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    "log",
    ["wrong-name", "gated", "full-disk", "cut-weights", "socket-taken", NO_CUDA, TOO_SMALL],
    ids=lambda log: log.partition(":")[0],
)
def test_node_whose_engine_cannot_start_exits_with_4(place, python, log):
    printed = LOGS / f"{log}.log"
    if " " in log:
        printed = place / "printed.log"
        printed.write_text(log)
    given = f"--python {python} --standin-fail {printed}"
    code, told = provider(place, "--model", "some/model", "--engine-args", given)
    assert code == 4, told
    assert "vLLM cannot serve some/model: " in told
    assert "Traceback" not in told


def test_node_without_vllm_exits_with_4(place):
    bare = place / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o700)
    code, told = provider(place, "--model", "some/model", "--engine-args", f"--python {bare}")
    assert code == 4, told
    assert "pip install 'aimo-node[vllm]'" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "/no/such/folder"), "there is no such folder"),
        (("--model", "some/model", "--engine-args", "--port 8000"), "--port is not yours"),
        (("--model", "some/model", "--engine-args", "--python /no/python"), "no such program"),
    ],
)
def test_node_with_wrong_settings_exits_with_2(place, arguments, words):
    code, told = provider(place, *arguments)
    assert code == 2, told
    assert words in told


@pytest.fixture(autouse=True)
def nothing_is_left(place):
    """Whatever a test did."""
    yield
    left = working_in(place / "state")
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
