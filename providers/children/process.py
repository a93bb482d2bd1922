"""One run of a child program: started in its own process group, heard, and surely ended.

The child holds a pipe from us as standard input; `parent_watch` makes it die with us. It tells its
start on standard output, in one line. What it prints on standard error goes to a bounded log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from aimo_node.errors import EngineStartFailed
from providers.children.child_environment import for_children
from providers.children.safeguard import Safeguard, Traces, start_safeguard

ANSWER_BYTES_MAX: Final = 4096
END_SECONDS: Final = 5.0
"""How long the kernel may take to clear away a killed process: a large one frees much memory."""


class Program(Protocol):
    """What `start_child` starts."""

    @property
    def module(self) -> str:
        """Its name, for messages."""

    @property
    def folder(self) -> Path:
        """Where it works."""

    def command(self) -> list[str]:
        """The command line."""

    def environment(self) -> dict[str, str]:
        """All its environment variables; those with keys of engines are left out later."""


class LogWriter(Protocol):
    """Where the output of a child goes."""

    def write(self, data: bytes) -> None:
        """Take what has come, cut anywhere."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a child is ended, if killing its process group is not enough.

    Attributes:
        grace_seconds: see `ChildProcess`.
        traces: what to remove afterwards, even if the node is killed first.
    """

    grace_seconds: float = 0.0
    traces: Traces | None = None


@dataclass(frozen=True, slots=True)
class PythonProgram:
    """A module of this distribution, run by the same interpreter.

    Attributes:
        arguments: visible in the process list, so no secrets.
    """

    module: str
    arguments: Sequence[str]
    folder: Path

    def command(self) -> list[str]:
        """The command line. ``-P`` keeps the current folder out of the import path."""
        return [sys.executable, "-P", "-m", self.module, *self.arguments]

    def environment(self) -> dict[str, str]:
        """Ours, and the path by which the child finds this distribution."""
        ours = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ours, inherited]))}


class ChildProcess:
    """Made by `start_child`; `end` must be called in the end.

    Attributes:
        pid: also of its process group.
        grace_seconds: between SIGTERM to the child alone and SIGKILL to its group; 0 kills at once.
    """

    def __init__(self, process: trio.Process, log: LogWriter, grace_seconds: float = 0.0) -> None:
        self.pid = process.pid
        self.grace_seconds = grace_seconds
        self._process = process
        self._log = log
        self._safeguard: Safeguard | None = None
        self._killed = False
        self._gone = False

    async def guard(self, folder: Path, traces: Traces) -> None:
        """Have its traces removed in the end, even if the node is killed first.

        Raises:
            EngineStartFailed: the system refuses.
        """
        self._safeguard = await start_safeguard(self.pid, folder, traces)

    async def note_shared_memory(self) -> None:
        """Have the shared memory that it has made by now removed in the end, too."""
        if self._safeguard is not None:
            await self._safeguard.note_shared_memory()

    async def read_answer(self) -> str:
        """The one line it says about its start; empty if it ends without."""
        assert self._process.stdout is not None  # noqa: S101 (start_child made a pipe)
        answer = b""
        while b"\n" not in answer and len(answer) < ANSWER_BYTES_MAX:
            data = await self._process.stdout.receive_some(ANSWER_BYTES_MAX)
            if not data:
                return ""
            answer += data
        return answer.partition(b"\n")[0].decode("utf-8", "replace")

    async def copy_log(self) -> None:
        """Copy what it prints to the log until it ends; meanwhile keep its safeguard alive."""
        async with trio.open_nursery() as nursery:
            if self._safeguard is not None:
                nursery.start_soon(self._safeguard.stay)
            await self._copy_rest()
            nursery.cancel_scope.cancel()

    async def wait(self) -> str:
        """Wait for its end; how it ended, for people, such as ``was killed by SIGKILL``."""
        code = await self._process.wait()
        # Whatever it started itself is in its group and must not outlive it.
        self.kill()
        self._gone = True
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """Kill its whole process group; idempotent, does not wait."""
        self._killed = True
        if not self._gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """End it and wait until it is gone, cancelled or not."""
        with trio.CancelScope(shield=True):
            await self._leave_in_peace()
            self.kill()
            with trio.move_on_after(END_SECONDS):
                await self.wait()
            if self._safeguard is not None:
                await self._safeguard.dismiss()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    await pipe.aclose()

    async def _leave_in_peace(self) -> None:
        """Let it put its own things in order, unless it was killed already."""
        if not self.grace_seconds or self._killed or self._process.poll() is not None:
            return
        self._process.terminate()
        with trio.move_on_after(self.grace_seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy_rest)  # a full pipe would hold it up
                await self._process.wait()
                nursery.cancel_scope.cancel()

    async def _copy_rest(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 (start_child made a pipe)
        async for data in self._process.stderr:
            self._log.write(data)


async def start_child(
    program: Program, log: LogWriter, farewell: Farewell | None = None
) -> ChildProcess:
    """Start `program` in a session of its own, so that a Ctrl-C of ours does not reach it.

    Raises:
        EngineStartFailed: the system refuses.
    """
    try:
        process = await trio.lowlevel.open_process(
            program.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=program.folder,
            env=for_children(program.environment()),
            start_new_session=True,
        )
    except OSError as error:
        raise EngineStartFailed(f"cannot start {program.module}: {error}") from error
    farewell = farewell or Farewell()
    child = ChildProcess(process, log, farewell.grace_seconds)
    if farewell.traces is not None:
        try:
            await child.guard(program.folder, farewell.traces)
        except BaseException:
            child.kill()
            await child.end()
            raise
    return child
