"""Knows an engine's processes again when the node that started them is gone, and ends them.

A process is named by its number and the moment it was born, so that a stranger who got the same
number later is never taken for it. Standard library only: `reaper` must start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

RUN_FILE_BYTES_MAX: Final = 65_536

_PROC: Final = Path("/proc")
_STAT: Final = _PROC / "self" / "stat"
_DELETED: Final = " (deleted)"

_SHARED: Final = re.compile(r" (/dev/shm/(?:psm_|sem\.mp-)[\w-]+)$", re.MULTILINE)
"""As Python's multiprocessing names what it makes; no two programs share such a name."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        born: when, in the system's own words; empty if it does not tell.
    """

    number: int
    born: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an engine: what `end_run` needs to clear it away.

    Attributes:
        node: who started it.
        leader: the process that was started; it leads a session of its own, with all its children.
        folder: where all of them work, a folder nobody else works in.
        paths: files and folders to remove when they are gone: sockets and the like.
    """

    node: Process
    leader: Process
    folder: str
    paths: tuple[str, ...]


def process(number: int) -> Process:
    """The process that has this number now, or would have it."""
    return Process(number, _born(number))


def is_alive(known: Process) -> bool:
    """Whether it still runs; one that merely waits to be counted out does not."""
    found = _stat(known.number)
    if found is not None and found.state == "Z":
        return False
    return bool(known.born) and _born(known.number) == known.born


def members(run: Run) -> list[int]:
    """The processes of a run that still run, its leader among them."""
    if is_alive(run.leader):
        # While the leader lives nobody else can be in its session.
        others = [stat.number for stat in _session(run.leader.number)]
        return others or [run.leader.number]
    if _born(run.leader.number) not in {"", run.leader.born}:
        return []  # a stranger has the number now, so that the session is none of ours
    return [
        stat.number
        for stat in _session(run.leader.number)
        if _folder_of(stat.number) == os.path.realpath(run.folder)
    ]


def kill(run: Run) -> bool:
    """Kill every process of a run; whether there was any."""
    found = members(run)
    for number in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)
    return bool(found)


def shared_memory(run: Run) -> tuple[str, ...]:
    """The segments of shared memory that a run has made for itself; blocks for some milliseconds.

    They have names, and whoever is killed leaves them behind until the machine is started anew.
    """
    found: set[str] = set()
    for number in members(run):
        with contextlib.suppress(OSError):
            text = (_PROC / str(number) / "maps").read_text(encoding="utf-8", errors="replace")
            found |= set(_SHARED.findall(text))
    return tuple(sorted(found))


def remove_traces(run: Run, run_file: Path) -> None:
    """Remove what a run has left in the file system, its run file last; idempotent."""
    for text in run.paths:
        path = Path(text)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        run_file.unlink()


def encode(run: Run) -> bytes:
    """A run as one line of JSON."""
    return json.dumps(asdict(run)).encode() + b"\n"


def decode(line: bytes) -> Run | None:
    """The run a line describes; None if it is damaged."""
    try:
        told = json.loads(line)
        return Run(
            Process(int(told["node"]["number"]), str(told["node"]["born"])),
            Process(int(told["leader"]["number"]), str(told["leader"]["born"])),
            str(told["folder"]),
            tuple(str(path) for path in told["paths"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def write_run(run: Run, run_file: Path) -> None:
    """Write a run file, whole or not at all; mode 0600.

    Raises:
        OSError: the disk is full, or the folder is not ours.
    """
    unfinished = run_file.with_name(run_file.name + ".new")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(encode(run))
    unfinished.replace(run_file)


def read_run(run_file: Path) -> Run | None:
    """What a run file says; None if there is none, or a damaged one."""
    try:
        with run_file.open("rb") as file:
            return decode(file.read(RUN_FILE_BYTES_MAX))
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Stat:
    number: int
    state: str
    group: int
    session: int
    ticks: str


def _stat(number: int | str) -> _Stat | None:
    """Of a process where the system tells it (Linux)."""
    try:
        text = (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
        # The name of a program may hold spaces and brackets.
        fields = text.rpartition(")")[2].split()
        return _Stat(int(number), fields[0], int(fields[2]), int(fields[3]), fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _session(leader: int) -> Iterator[_Stat]:
    """Everybody in the session and process group of `leader` who still runs."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(_PROC):
            found = _stat(entry.name) if entry.name.isdecimal() else None
            if found is None or found.state in {"Z", "X"}:
                continue
            if found.group == found.session == leader:
                yield found


def _born(number: int) -> str:
    if _STAT.exists():
        found = _stat(number)
        return f"{_boot()}:{found.ticks}" if found else ""
    # No /proc: ask a program that every Unix has.
    told = subprocess.run(  # noqa: S603 (no shell, and a number we know)
        ["/bin/ps", "-o", "lstart=", "-p", str(number)],
        capture_output=True,
        check=False,
        env={"LC_ALL": "C"},
    )
    return told.stdout.decode("ascii", "replace").strip()


def _boot() -> str:
    """Names the time since the machine was started; process numbers begin anew with each."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _folder_of(number: int) -> str:
    try:
        return str((_PROC / str(number) / "cwd").readlink()).removesuffix(_DELETED)
    except OSError:
        return ""
