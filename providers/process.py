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
from typing import Final

import trio

from aimo_node.errors import EngineStartFailed
from providers.bounded_log import BoundedLog

ANSWER_BYTES_MAX: Final = 4096
END_SECONDS: Final = 5.0
"""How long the kernel may take to clear away a killed process: a large one frees much memory."""


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
        ours = str(Path(__file__).resolve().parent.parent)
        inherited = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ours, inherited]))}


class ChildProcess:
    """Made by `start_child`; `end` must be called in the end.

    Attributes:
        pid: also of its process group.
    """

    def __init__(self, process: trio.Process, log: BoundedLog) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log
        self._gone = False

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
        """Copy what it prints to the log until it ends."""
        assert self._process.stderr is not None  # noqa: S101 (start_child made a pipe)
        async for data in self._process.stderr:
            self._log.write(data)

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
        if not self._gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is gone, cancelled or not."""
        self.kill()
        with trio.move_on_after(END_SECONDS) as scope:
            scope.shield = True
            await self.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    await pipe.aclose()


async def start_child(program: PythonProgram, log: BoundedLog) -> ChildProcess:
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
            env=program.environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise EngineStartFailed(f"cannot start {program.module}: {error}") from error
    return ChildProcess(process, log)
