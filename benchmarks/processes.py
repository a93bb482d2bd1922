"""Nodes as processes of their own, and what the kernel says they used."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aimo_node.assembly.node import GC_THRESHOLD

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2
"""Linux: which clock of a process is meant, in the lowest bits of its clock id."""
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds since the start and resident MB of one process without its children."""

    cpu_seconds: float
    memory_mb: float


def used(pid: int) -> Used:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return Used(cpu_seconds(pid), int(fields[1]) * _PAGE / 1e6)


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, finer than the ticks in /proc: `clock_getcpuclockid`."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def collect_as_a_node() -> None:
    """Collect garbage from now on as a node does once it is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


@contextmanager
def far_end(folder: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """A process with `count` nodes: its pid and their addresses."""
    with far_process(folder, count) as process:
        assert process.stdout is not None
        yield process.pid, json.loads(process.stdout.readline())


@contextmanager
def far_process(folder: Path, count: int, *near: str) -> Iterator[subprocess.Popen[str]]:
    """A process with `count` nodes, which link to `near` if that is named."""
    command = [sys.executable, "-m", "benchmarks.link_child", str(folder), str(count), *near]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class NodeProcess:
    """One `aimo` process; the ready line is read by `wait_ready`."""

    def __init__(
        self, folder: Path, role: str, *arguments: str, inside: Sequence[str] = ()
    ) -> None:
        """`inside` is what enters a network namespace."""
        self.role = role
        self.started = time.perf_counter()
        self._log = (folder / f"{role}.log").open("wb")
        command = [sys.executable, "-m", "aimo_node", role, "--state", str(folder / role)]
        self.process = subprocess.Popen(
            [*inside, *command, "--ready-json", "--watch-stdin", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> NodeProcess:
        """Wait for the ready line."""
        stdout = self.process.stdout
        assert stdout is not None
        line = _read_line(stdout, READY_SECONDS)
        if not line:
            sys.exit(f"{self.role} did not become ready, see {self._log.name}")
        self.ready = json.loads(line)
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def stop(self) -> None:
        """End it, in good order if it can."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _read_line(stream: IO[str], seconds: float) -> str:
    readable, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if readable else ""


def free_port() -> int:
    """A TCP port on loopback that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(port: int, seconds: float = 10.0) -> None:
    """Return once somebody accepts connections on the port."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    sys.exit(f"nobody listens on port {port}")
