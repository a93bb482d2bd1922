"""The node's side of `reaper`: what a child leaves is removed even if the node dies."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import structlog
import trio

from aimo_node.errors import EngineStartFailed
from providers.children.orphans import (
    Run,
    encode,
    is_alive,
    kill,
    members,
    process,
    read_run,
    remove_traces,
    shared_memory,
    write_run,
)

GONE_SECONDS: Final = 30.0
"""How long killed processes may take to disappear; a graphics card is freed only then."""

POLL_SECONDS: Final = 0.02
RESTART_SECONDS: Final = 1.0
"""Before another reaper is started in place of one that was killed."""

_OURS: Final = str(Path(__file__).resolve().parents[2])
"""Where the reaper finds this distribution."""

_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Traces:
    """What a child process leaves behind when it is killed.

    Attributes:
        run_file: where this run is written down for the next start, such as ``STATE/vllm.run``.
        paths: sockets, and folders of sockets, to remove.
    """

    run_file: Path
    paths: tuple[Path, ...] = ()


class Safeguard:
    """Beside one child process; made by `start_safeguard`, ended by `dismiss`.

    Attributes:
        run: the child, as it is written down.
    """

    def __init__(self, run: Run, run_file: Path) -> None:
        self.run = run
        self._run_file = run_file
        self._reaper: trio.Process | None = None

    async def start(self) -> None:
        """Write the run down and start the reaper.

        Raises:
            OSError: the system refuses.
        """
        write_run(self.run, self._run_file)
        self._reaper = await trio.lowlevel.open_process(
            # -S: it needs nothing that is installed, and starts twice as fast without.
            [sys.executable, "-S", "-P", "-m", "providers.children.reaper", str(self._run_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONPATH": _OURS},
            start_new_session=True,
        )
        assert self._reaper.stdin is not None  # noqa: S101 (we made a pipe)
        await self._reaper.stdin.send_all(encode(self.run))

    async def note_shared_memory(self) -> None:
        """Write down what the child has made by now, to be removed with the rest."""
        found = await trio.to_thread.run_sync(shared_memory, self.run)
        self.run = replace(self.run, paths=tuple(dict.fromkeys((*self.run.paths, *found))))
        with contextlib.suppress(OSError):  # a full disk is no reason not to serve
            write_run(self.run, self._run_file)

    async def stay(self) -> NoReturn:
        """Start another reaper whenever somebody kills it, until cancelled."""
        while True:
            if self._reaper is not None:
                await self._reaper.wait()
                _log.warning("engine.reaper_died", run_file=str(self._run_file))
            await trio.sleep(RESTART_SECONDS)
            try:
                await self.start()
            except (OSError, trio.BrokenResourceError) as error:
                _log.warning("engine.reaper_failed", error=str(error))
                self._reaper = None

    async def dismiss(self) -> None:
        """The child was killed: wait until all its processes are gone, remove what they left."""
        await _until_gone(self.run)
        remove_traces(self.run, self._run_file)
        if self._reaper is not None:
            self._reaper.kill()
            await self._reaper.wait()
            if self._reaper.stdin is not None:
                await self._reaper.stdin.aclose()


async def start_safeguard(pid: int, folder: Path, traces: Traces) -> Safeguard:
    """Guard a child that was just started.

    Args:
        pid: of the child; it leads a session of its own.
        folder: in which it was started.

    Raises:
        EngineStartFailed: the system refuses.
    """
    run = Run(
        process(os.getpid()), process(pid), str(folder), tuple(str(path) for path in traces.paths)
    )
    safeguard = Safeguard(run, traces.run_file)
    try:
        await safeguard.start()
    except (OSError, trio.BrokenResourceError) as error:
        raise EngineStartFailed(f"cannot watch over the engine's process: {error}") from error
    return safeguard


async def clear_orphans(run_file: Path, engine: str) -> None:
    """End what an earlier run has left, before the next one starts.

    Raises:
        EngineStartFailed: the node that started it is still alive.
    """
    run = read_run(run_file)
    if run is None:
        return
    found = members(run)
    if is_alive(run.node) and (found or run.node.number != os.getpid()):
        raise EngineStartFailed(
            f"another {engine} engine runs in {run_file.parent}, started by process "
            f"{run.node.number}: is a node with this --state running?"
        )
    if found:
        _log.warning("engine.orphans_found", engine=engine, processes=len(found))
        kill(run)
        await _until_gone(run)
    remove_traces(run, run_file)


async def _until_gone(run: Run) -> None:
    with trio.move_on_after(GONE_SECONDS):
        while kill(run):  # noqa: ASYNC110 (a dying process sets no trio.Event)
            await trio.sleep(POLL_SECONDS)
