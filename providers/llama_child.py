"""The llama engine's child process: how it is started, probed, explained and cleared away."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import Progress
from providers.bounded_log import BoundedLog
from providers.cache_slots import CacheSlots
from providers.process import ChildProcess, PythonProgram, start_child
from providers.socket_folder import claim_socket, remove_socket
from providers.unix_client import UnixUpstream
from providers.upstream import ask_once

REQUESTS_MAX_DEFAULT: Final = 4
PROGRESS_EVERY_SECONDS: Final = 2.0

_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LlamaPlan:
    """How llama.cpp is to run.

    Attributes:
        context_tokens: of each slot; 0 takes the model's own, at most `CONTEXT_TOKENS_DEFAULT`.
        gpu_layers: -1 leaves it to llama.cpp.
        digest: of the weights, once known.
    """

    weights: Path
    name: ModelName
    state_folder: Path
    slots: int = REQUESTS_MAX_DEFAULT
    context_tokens: int = 0
    threads: int = 1
    gpu_layers: int = -1
    digest: bytes = b""


class LlamaChild:
    """The supervisor's charge, see `providers.supervisor.Charge`.

    Attributes:
        plan: complete before the first launch.
        ready: called after each start.
        slots: what the child's slots hold.
        upstream: the child that was launched last.
    """

    name = "llama"

    def __init__(self, plan: LlamaPlan) -> None:
        self.plan = plan
        self.ready: Callable[[], None] = _ignore
        self.slots = CacheSlots(plan.slots)
        self.upstream = UnixUpstream(Path())
        self._socket: Path | None = None
        self._log: BoundedLog | None = None

    async def launch(self) -> ChildProcess:
        """See `Charge`."""
        plan = self.plan
        self._socket = await claim_socket(plan.state_folder, self.name)
        self.upstream = UnixUpstream(self._socket)
        if self._log is None:
            self._log = BoundedLog(plan.state_folder / "llama.log")
        self._log.begin(f"llama.cpp for {plan.name}")
        settings = {
            "model": str(plan.weights),
            "name": plan.name,
            "socket": str(self._socket),
            "slots": plan.slots,
            "context_tokens": plan.context_tokens,
            "threads": plan.threads,
            "gpu_layers": plan.gpu_layers,
        }
        program = PythonProgram("providers.llama_server", [json.dumps(settings)], plan.state_folder)
        return await start_child(program, self._log)

    async def wait_ready(self, child: ChildProcess, progress: Progress) -> str:
        """See `Charge`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, child.pid, progress)
            answer = await child.read_answer()
            nursery.cancel_scope.cancel()
        if answer.startswith("ready "):
            return ""
        return answer.removeprefix("failed ") or await child.wait()

    async def probe(self, timeout_seconds: float) -> bool:
        """See `Charge`."""
        try:
            status, _ = await ask_once(self.upstream, "/health", timeout_seconds=timeout_seconds)
        except EngineFailed:
            return False
        return status == 200

    def up(self) -> None:
        """See `Charge`."""
        _log.info("engine.ready", engine=self.name, model=self.plan.name, slots=self.plan.slots)
        self.ready()

    def down(self) -> None:
        """See `Charge`."""
        if self._socket is not None:
            remove_socket(self._socket)

    def explain(self, ending: str) -> str:
        """See `Charge`."""
        if self._log is None:
            return ending
        lines = [line.partition(" E ")[2] for line in self._log.tail()]
        reason = next((" ".join(line.split()) for line in lines if line), ending)
        return f"llama.cpp cannot serve {self.plan.weights}: {reason} (more in {self._log.path})"

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _report(self, pid: int, progress: Progress) -> None:
        """Tell how much of the weights is in memory until cancelled."""
        size = max(1, self.plan.weights.stat().st_size)
        progress(f"loading {self.plan.name}, {size / 1e6:.0f} MB")
        while True:
            await trio.sleep(PROGRESS_EVERY_SECONDS)
            percent = min(99, 100 * _resident_bytes(pid) // size)
            progress(f"loading {self.plan.name}, {percent} %")


def _ignore() -> None:
    """Before `run` nobody waits for ready."""


def _resident_bytes(pid: int) -> int:
    """Memory of a process where the system tells it (Linux), else 0."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
