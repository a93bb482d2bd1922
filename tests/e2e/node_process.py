"""One node in a process of its own: how it is started, waited for, signalled and ended.

A node is held by the writing end of its standard input (`--watch-stdin`), so that it goes when the
test run does, however that ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import trio

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0
"""A start takes about a second of CPU; a busy machine may take many times that."""
END_SECONDS = 12.0
POLL_SECONDS = 0.02
LOG_LINES_SHOWN = 40


def environment(folder: Path) -> dict[str, str]:
    """That of this process without the settings of anybody's own node, temporary files apart."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIMO_")}
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **clean,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "XDG_STATE_HOME": str(folder / "xdg"),
        "XDG_CONFIG_HOME": str(folder / "xdg"),
    }


class NodeProcess:
    """``python -m aimo_node COMMAND …`` in a session of its own.

    Attributes:
        name: also that of its state folder and its two files of output, in `folder`.
    """

    def __init__(
        self,
        name: str,
        command: str,
        *flags: str,
        folder: Path,
        variables: Mapping[str, str] = {},
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.state = folder / name
        self._stdout, self._stderr = folder / f"{name}.out", folder / f"{name}.err"
        arguments = [
            *prefix,
            *(sys.executable, "-m", "aimo_node", command, *flags),
            *("--state", str(self.state)),
            *(() if "--config" in flags else ("--config", os.devnull)),
            *("--ready-json", "--watch-stdin"),
        ]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.popen = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                cwd=folder,
                env={**environment(folder), **variables},
            )
        self._process = psutil.Process(self.popen.pid)
        self._family: dict[int, psutil.Process] = {self.popen.pid: self._process}

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return self._stderr.read_text("utf-8", errors="replace")

    @property
    def output(self) -> str:
        """What it wrote to stdout."""
        return self._stdout.read_text("utf-8", errors="replace")

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return self._process.memory_info().rss

    @property
    def ready_line(self) -> dict[str, Any]:
        """The ready line; empty until it is there."""
        line, newline, _ = self.output.partition("\n")
        return json.loads(line) if newline else {}

    @property
    def peer_id(self) -> str:
        """The node's peer id, once ready."""
        return self.ready_line["peer_id"]

    @property
    def url(self) -> str:
        """Where its HTTP door is, once ready."""
        return self.ready_line["http"]

    @property
    def port(self) -> int:
        """The port of its HTTP door, once ready."""
        return int(self.url.rpartition(":")[2])

    @property
    def children(self) -> list[psutil.Process]:
        """The processes it has started and that live; remembered for `leftovers`."""
        try:
            found = self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._family |= {child.pid: child for child in found}
        return found

    def wait_ready(self, seconds: float = READY_SECONDS) -> "NodeProcess":
        """Return once its ready line is there."""
        wait_for(lambda: self._has_settled, seconds, f"{self.name} is not ready", self)
        self.assert_alive()
        return self

    async def ready(self, seconds: float = READY_SECONDS) -> "NodeProcess":
        """As `wait_ready`, for tests on trio."""
        await eventually(lambda: self._has_settled, seconds, f"{self.name} is not ready", self)
        self.assert_alive()
        return self

    @property
    def _has_settled(self) -> bool:
        return bool(self.ready_line) or not self.is_alive

    def assert_alive(self) -> None:
        """Fail with the end of its log if it has ended."""
        assert self.is_alive, f"{self.name} ended with {self.popen.returncode}:\n{self.log_tail}"

    @property
    def log_tail(self) -> str:
        """The end of its log, for messages."""
        return "\n".join(self.log.splitlines()[-LOG_LINES_SHOWN:])

    def children_running(self, module: str) -> list[psutil.Process]:
        """Those of its children that run `module`."""
        found = []
        for child in self.children:
            try:
                if any(module in part for part in child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        self.popen.send_signal(number)

    def note_children(self) -> None:
        """Remember what it has started so far, for `leftovers`."""
        _ = self.children

    def kill(self) -> None:
        """SIGKILL, as a power cut for one process."""
        self.popen.kill()
        self.popen.wait()

    def wait_exit(self, seconds: float = END_SECONDS) -> int:
        """Its exit code, once it has ended."""
        wait_for(lambda: not self.is_alive, seconds, f"{self.name} does not end", self)
        self._close_stdin()
        return self.popen.wait()

    async def exit_code(self, seconds: float = END_SECONDS) -> int:
        """As `wait_exit`, for tests on trio."""
        await eventually(lambda: not self.is_alive, seconds, f"{self.name} does not end", self)
        self._close_stdin()
        return self.popen.wait()

    def end(self) -> None:
        """Whatever its state: SIGTERM, SIGKILL when that does not help."""
        self.note_children()
        if self.is_alive:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise AssertionError(f"{self.name} ignored SIGTERM:\n{self.log_tail}") from None
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self.popen.stdin is not None:
            self.popen.stdin.close()

    def leftovers(self) -> list[str]:
        """What of it still exists after its end: processes, sockets, half-written files."""
        found = [str(one) for one in self._family.values() if _lives(one)]
        return found + strange_files(self.state)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def strange_files(folder: Path) -> list[str]:
    """Sockets, and files that were meant to be renamed but were not."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return [str(path) for path in paths if path.is_socket() or _is_draft(path)]


def _is_draft(path: Path) -> bool:
    return path.is_file() and path.name.startswith(".")


def wait_for(
    condition: Callable[[], bool], seconds: float, problem: str, *nodes: NodeProcess
) -> None:
    """Return when `condition` holds; fail with the ends of the nodes' logs when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(_report(problem, seconds, nodes))
        time.sleep(POLL_SECONDS)


async def eventually(
    condition: Callable[[], Any], seconds: float, problem: str, *nodes: NodeProcess
) -> None:
    """As `wait_for`, for tests on trio; `condition` may be a coroutine function."""
    deadline = trio.current_time() + seconds
    while True:
        held = condition()
        if hasattr(held, "__await__"):
            held = await held
        if held:
            return
        if trio.current_time() > deadline:
            raise AssertionError(_report(problem, seconds, nodes))
        await trio.sleep(POLL_SECONDS)


def _report(problem: str, seconds: float, nodes: tuple[NodeProcess, ...]) -> str:
    logs = "\n".join(f"--- {node.name}\n{node.log_tail}" for node in nodes)
    return f"{problem} after {seconds:.1f} s\n{logs}"
