"""`aimo demo` for real: three processes, one answer, and nothing left however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PATIENCE_SECONDS = 60.0


def demo(folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Start the demo with its state in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "aimo_node", "demo", "--state", str(folder), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything whose command line or working files lie in `folder`."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or ())
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "demo"
    for process in processes_of(tmp_path / "demo"):
        process.kill()


@pytest.fixture
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that stays up, and what it printed until then."""
    process = demo(folder)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C ends the demo" in line:
            break
    assert process.poll() is None, process.communicate()[1]
    yield process, "".join(lines)
    process.kill()
    process.communicate()


def leftovers(folder: Path) -> list[str]:
    """Sockets and unfinished files."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_socket() or path.name.startswith(".") or path.name == "join"
    ]


def test_once_prints_a_real_answer_and_ends_clean(folder: Path) -> None:
    stdout, stderr = (process := demo(folder, "--once")).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "answer     7\n" in stdout
    assert "tokens/s" in stdout
    assert processes_of(folder) == []
    assert leftovers(folder) == []


def test_json_tells_the_same_to_a_program_twice(folder: Path) -> None:
    """The second start has identities and secrets of the first."""
    for _ in range(2):
        stdout, stderr = (process := demo(folder, "--once", "--json")).communicate(
            timeout=PATIENCE_SECONDS
        )
        assert process.returncode == 0, stderr
        report = json.loads(stdout)
        assert report["answer"] == "7"
        assert report["path"] == "direct"
        assert report["provider"].startswith("12D3Koo")
        assert report["finish_reason"] == "stop"
    assert report["start_to_first_token_seconds"] <= 6


def test_what_it_prints_works_as_printed(running: tuple[subprocess.Popen[str], str]) -> None:
    _, text = running
    program = text[text.index("from openai") : text.index("or talk to it")]
    assert len(program.strip().splitlines()) == 6
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "7", result.stderr
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    curl = next(line for line in text.splitlines() if line.startswith("curl -N"))
    result = subprocess.run(
        ["/bin/sh", "-c", curl], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("victim", ["relay", "provider", "edge"])
def test_a_node_that_dies_ends_the_demo_by_name(
    running: tuple[subprocess.Popen[str], str], folder: Path, victim: str
) -> None:
    process, _ = running
    family = psutil.Process(process.pid).children(recursive=True)
    (node,) = [node for node in family if victim in node.cmdline()]
    node.kill()
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert f"the {victim} was killed by signal 9" in stderr
    assert psutil.wait_procs(family, timeout=15)[1] == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGKILL, -9)]
)
def test_a_signal_while_it_is_up_leaves_no_process(
    running: tuple[subprocess.Popen[str], str], folder: Path, number: int, code: int
) -> None:
    """After SIGKILL the nodes notice that the pipe on their stdin has closed."""
    process, _ = running
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4, "three nodes and the engine"
    os.kill(process.pid, number)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code
    assert psutil.wait_procs(family, timeout=15)[1] == []
    if number != signal.SIGKILL:
        assert leftovers(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.15, 0.5, 1.0])
def test_a_signal_during_the_start_leaves_no_process(
    folder: Path, seconds: float, number: int
) -> None:
    """At the first moment, while modules load, and about when they join."""
    process = demo(folder)
    time.sleep(seconds)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in stdout + stderr
    assert wait_until(lambda: processes_of(folder) == []), processes_of(folder)
    if number == signal.SIGINT:
        # Before anything runs the signal itself may end it, which a shell reports as 130, too.
        assert process.returncode in {130, -signal.SIGINT}
        assert leftovers(folder) == []


def test_a_second_demo_in_the_same_folder_is_told_so(
    running: tuple[subprocess.Popen[str], str], folder: Path
) -> None:
    _, stderr = (second := demo(folder, "--once")).communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 2
    assert "--state" in stderr
