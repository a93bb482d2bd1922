"""The llama engine's child process: how it is started, probed, explained and cleared away."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import Progress
from providers.answers import NOT_JSON
from providers.children.bounded_log import BoundedLog
from providers.children.process import ChildProcess, Farewell, PythonProgram, start_child
from providers.children.safeguard import Traces, clear_orphans
from providers.children.socket_folder import claim_socket, remove_socket, socket_traces
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from providers.llama.cache_slots import CacheSlots
from providers.llama.plan import LlamaPlan, remember_checked

PROGRESS_EVERY_SECONDS: Final = 2.0
SLOTS_TIMEOUT_SECONDS: Final = 1.0
"""llama.cpp answers between two steps of its computation; a long prompt makes that long."""

EXPLAINED_BYTES_MAX: Final = 16_384
"""So much of the log's end is searched for the reason of a death."""

LAST_WORDS_SECONDS: Final = 3.0
"""For a process that has failed to end by itself."""

REASON_CHARACTERS_MAX: Final = 300
"""Of a line that llama.cpp printed."""

_FIXES: Final[Mapping[str, str]] = {
    r"not within the file bounds|failed to read|unexpected(ly)? (end|reached)|incomplete": (
        "the file is not complete: download it again"
    ),
    r"invalid data|invalid magic|corrupt": "the file is damaged: download it again",
    r"unknown model architecture|unknown (pre-)?tokenizer|wrong number of tensors": (
        "this llama.cpp does not know such a model: update xllamacpp"
    ),
    r"(failed|unable) to allocate|out of memory|bad_alloc|kv.?cache": (
        "there is not enough memory: take a smaller quantization, a smaller "
        "--engine-args '--context …' or fewer --requests-max"
    ),
}
"""What llama.cpp prints, and what to do about it."""

_log: Final = structlog.get_logger()


class LlamaChild:
    """The supervisor's charge, see `providers.children.supervisor.Charge`.

    Attributes:
        plan: complete before the first launch.
        ready: called after each start.
        slots: what the child's slots hold.
        kv_used: share of the key-value cache that running requests take, as of the last probe.
        upstream: the child that was launched last.
    """

    name = "llama"

    def __init__(self, plan: LlamaPlan) -> None:
        self.plan = plan
        self.ready: Callable[[], None] = _ignore
        self.slots = CacheSlots(plan.slots)
        self.kv_used = 0.0
        self.upstream = UnixUpstream(Path())
        self._socket: Path | None = None
        self._log: BoundedLog | None = None

    async def launch(self) -> ChildProcess:
        """See `Charge`."""
        plan = self.plan
        run_file = plan.state_folder / f"{self.name}.run"
        await clear_orphans(run_file, self.name)
        self._socket = await claim_socket(plan.state_folder, self.name)
        self.upstream = UnixUpstream(self._socket)
        if self._log is None:
            self._log = BoundedLog(plan.state_folder / "llama.log")
        self._log.begin(_title(plan))
        settings = json.dumps(plan.child_settings(self._socket))
        program = PythonProgram("providers.llama.server", [settings], plan.state_folder)
        farewell = Farewell(traces=Traces(run_file, socket_traces(self._socket)))
        # Cancelled between child and reaper it would leave one without the other for a moment.
        with trio.CancelScope(shield=True):
            return await start_child(program, self._log, farewell)

    async def wait_ready(self, child: ChildProcess, progress: Progress) -> str:
        """See `Charge`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, child.pid, progress)
            answer = await child.read_answer()
            nursery.cancel_scope.cancel()
        if answer.startswith("ready "):
            return ""
        ending = ""
        # llama.cpp writes its log in a thread of its own, and to the end only if it ends by itself
        with trio.move_on_after(LAST_WORDS_SECONDS):
            ending = await child.wait()
        return answer.removeprefix("failed ") or ending or await child.wait()

    async def probe(self, timeout_seconds: float) -> bool:
        """See `Charge`."""
        try:
            status, _ = await ask_once(self.upstream, "/health", timeout_seconds=timeout_seconds)
        except EngineFailed:
            return False
        await self._read_slots()
        return status == 200

    def up(self) -> None:
        """See `Charge`."""
        plan = self.plan
        _log.info("engine.ready", engine=self.name, model=plan.name, slots=plan.slots)
        self.slots.forget()
        remember_checked(plan)
        self.plan = replace(plan, is_checked=True)
        self.ready()

    def down(self) -> None:
        """See `Charge`."""
        self.kv_used = 0.0
        if self._socket is not None:
            remove_socket(self._socket)

    def explain(self, ending: str) -> str:
        """See `Charge`."""
        if self._log is None:
            return ending
        # From the file: llama.cpp writes its lines in pieces, and the log's tail is made of those.
        printed = _last_run(self._log.path, _title(self.plan))
        errors = [line.partition(" E ")[2] for line in printed.splitlines()]
        return explained(self.plan, [line for line in errors if line], ending, self._log.path)

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

    async def _read_slots(self) -> None:
        """Learn how full the cache is; if it does not tell in time, the number stays as it was."""
        try:
            status, answer = await ask_once(
                self.upstream, "/slots", timeout_seconds=SLOTS_TIMEOUT_SECONDS
            )
            slots = _decode_slots(answer) if status == 200 else []
        except (EngineFailed, *NOT_JSON):
            return
        room = self.plan.slots * self.plan.context_tokens
        taken = sum(slot.n_prompt_tokens for slot in slots if slot.is_processing)
        self.kv_used = min(1.0, taken / room) if room else 0.0


def _title(plan: LlamaPlan) -> str:
    return f"llama.cpp for {plan.name}"


def _last_run(log: Path, title: str) -> str:
    """What was printed last, since the line with `title`."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - EXPLAINED_BYTES_MAX))
            return file.read().decode("utf-8", "replace").rpartition(title)[2]
    except OSError:
        return ""


def explained(plan: LlamaPlan, errors: Sequence[str], ending: str, log: Path) -> str:
    """One sentence about a child that ended, with the fix where one is known.

    Args:
        errors: what llama.cpp printed, oldest first.
        log: where the rest is.
    """
    reason = " ".join((errors[0] if errors else ending).split())[:REASON_CHARACTERS_MAX]
    fix = ""
    for line in errors:
        found = next((_FIXES[words] for words in _FIXES if re.search(words, line)), "")
        if found:
            reason, fix = " ".join(line.split())[:REASON_CHARACTERS_MAX], f"; {found}"
            break
    if not errors and "SIGKILL" in ending:
        fix = "; perhaps the system ran out of memory; take a smaller quantization"
    return f"llama.cpp cannot serve {plan.weights}: {reason}{fix} (more in {log})"


class _Slot(msgspec.Struct):
    """One of ``/slots``; the count holds what was generated so far, too."""

    is_processing: bool = False
    n_prompt_tokens: int = 0


_decode_slots: Final = msgspec.json.Decoder(list[_Slot]).decode


def _ignore() -> None:
    """Before `run` nobody waits for ready."""


def _resident_bytes(pid: int) -> int:
    """Memory of a process where the system tells it (Linux), else 0."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
