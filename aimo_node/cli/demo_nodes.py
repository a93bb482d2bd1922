"""The processes of the demo: started, waited for, watched and ended, none left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from aimo_node.cli.failure import Failure
from aimo_node.cli.interrupts import InterruptGate

READY_SECONDS: Final = 90.0
"""The first start on a slow machine compiles every module; a second one takes three seconds."""

READY_BYTES_MAX: Final = 64 * 1024
"""A ready line has well under a thousand bytes."""

GRACE_SECONDS: Final = 2.0
"""What running requests get when the demo ends: there is nobody left to read them."""

END_SECONDS: Final = 8.0
"""From SIGTERM to SIGKILL; grace, engine and links end well before."""

LOG_LINES_SHOWN: Final = 15

_POLL_SECONDS: Final = 0.02

_LOOK_SECONDS: Final = 1.0
"""How often to look for dead processes whose stdout a child of theirs still holds."""


class DemoError(Failure):
    """The demo cannot go on."""


class DemoNode:
    """One node in a process and a session of its own.

    Its stdin is a pipe that we hold: when this process dies, however suddenly, the pipe closes
    and the node ends (`--watch-stdin`).
    """

    def __init__(self, role: str, flags: Sequence[str], folder: Path) -> None:
        self.role = role
        self.log_file = folder / f"{role}.log"
        self.ready: dict[str, Any] | None = None
        self._line = b""
        command = [
            *(sys.executable, "-m", "aimo_node", role, *flags),
            *("--state", str(folder / role), "--config", os.devnull),
            *("--grace", str(GRACE_SECONDS), "--ready-json", "--watch-stdin"),
        ]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 (our own program, no shell)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=_clean_environment(),
            )

    @property
    def stdout_fileno(self) -> int:
        """Readable when there is a ready line, or at the end of the process."""
        stdout = self.process.stdout
        return -1 if stdout is None else stdout.fileno()

    def read(self) -> bool:
        """Take in what it printed; False once it has closed its stdout, that is, ended.

        Call it only when `stdout_fileno` is readable.
        """
        data = os.read(self.stdout_fileno, READY_BYTES_MAX)
        if self.ready is None and len(self._line) < READY_BYTES_MAX:
            self._line += data
            line, newline, _ = self._line.partition(b"\n")
            if newline:
                self.ready = json.loads(line)
        return bool(data)

    def explain_end(self) -> DemoError:
        """Why the demo cannot go on after this process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        return DemoError(f"the {self.role} {how}; the end of {self.log_file}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
            return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:]) or "  (empty)"
        return "  (cannot be read)"

    def ask_to_end(self) -> None:
        """SIGTERM, and the end of its stdin."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to it and what it has in its group, if it is still there."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class DemoNodes:
    """All processes of one demo. A context manager: leaving it ends them."""

    def __init__(self, folder: Path, gate: InterruptGate) -> None:
        self._folder = folder
        self._gate = gate
        self._nodes: list[DemoNode] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> DemoNodes:
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes; a second Ctrl-C kills them."""
        with self._gate.closed():
            self._end_all()
            self._selector.close()

    def start(self, role: str, *flags: str) -> None:
        """Start a node; no signal can come between its start and our knowing of it."""
        with self._gate.closed():
            node = DemoNode(role, flags, self._folder)
            self._nodes.append(node)
            self._selector.register(node.stdout_fileno, selectors.EVENT_READ, node)

    def wait_ready(self, on_ready: Callable[[DemoNode], None]) -> None:
        """Return when every node is ready, having told `on_ready` of each.

        Raises:
            DemoError: one ended, or it takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        waiting = {node.role for node in self._nodes}
        while waiting:
            timeout = deadline - time.monotonic()
            if timeout <= 0:
                late = ", ".join(sorted(waiting))
                raise DemoError(
                    f"not ready after {READY_SECONDS:.0f} s: {late}; see {self._folder}"
                )
            for node in self._read_ready(timeout):
                if node.role in waiting and node.ready is not None:
                    waiting.discard(node.role)
                    on_ready(node)

    def watch(self, seconds: float | None = None) -> None:
        """Return after `seconds`, or never.

        Raises:
            DemoError: one of the nodes ended.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            for _ in self._read_ready(None if deadline is None else deadline - time.monotonic()):
                pass

    def _read_ready(self, timeout: float | None) -> Iterator[DemoNode]:
        limit = _LOOK_SECONDS if timeout is None else min(timeout, _LOOK_SECONDS)
        for key, _ in self._selector.select(limit):
            node: DemoNode = key.data
            if not node.read():
                raise node.explain_end()
            yield node
        for node in self._nodes:
            if node.process.poll() is not None:
                raise node.explain_end()

    def _end_all(self) -> None:
        seen = len(self._gate.received)
        deadline = time.monotonic() + END_SECONDS
        for node in reversed(self._nodes):
            node.ask_to_end()
        while any(node.process.poll() is None for node in self._nodes):
            if time.monotonic() > deadline or len(self._gate.received) > seen:
                break
            time.sleep(_POLL_SECONDS)
        for node in self._nodes:
            node.kill()


def _clean_environment() -> dict[str, str]:
    """Ours without settings of the user's own node: they must not steer the demo."""
    return {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("AIMO_") and "__" in name)
    }
