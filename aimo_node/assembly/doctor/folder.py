"""Checks of the state folder: can it be written, is there room, whose is the key in it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.machine import DiskSpace
from aimo_node.assembly.doctor.program import CONFIGURATION
from aimo_node.assembly.doctor.threads import in_thread
from aimo_node.errors import ConfigError
from aimo_node.mesh.identity import KeyPair, read_identity

STATE_BYTES_MIN: Final = 16 << 20
STATE_BYTES_LOW: Final = 256 << 20
"""Logs, the address book and engines' small files want this much before it becomes tight."""
MODELS_BYTES_LOW: Final = 5 << 30
"""Less than a small model."""
FILES_LOW: Final = 100
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Folder:
    """How the state folder is.

    Attributes:
        exists: whether it does; else `tried` is where it would be made.
        error: number of the error that writing gave; 0 for none.
    """

    path: Path
    tried: Path
    exists: bool
    error: int = 0
    is_folder: bool = True


async def _try_folder(case: Case) -> Folder:
    path = case.seen(CONFIGURATION).usable.node.state
    return await in_thread(partial(_write_a_little, path))


def _write_a_little(path: Path) -> Folder:
    """Nothing stays behind; a folder that is not there is not made."""
    try:
        tried = next(one for one in (path, *path.absolute().parents) if one.exists())
        exists, is_folder = tried == path, tried.is_dir()
    except OSError as error:
        return Folder(path, path, exists=False, error=error.errno or errno.EIO)
    try:
        with tempfile.TemporaryFile(dir=tried) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return Folder(path, tried, exists, error.errno or errno.EIO, is_folder)
    return Folder(path, tried, exists)


def judge_folder(seen: Folder) -> list[Finding]:
    """Whether a node can keep its files there."""
    if not seen.is_folder:
        said = f"{seen.path} cannot be a state folder: {seen.tried} is not a folder"
        return [problem(Layer.STATE, said, "choose another one with --state DIR")]
    if seen.error in _FULL:
        said = f"nothing can be written to {seen.tried}: {os.strerror(seen.error).lower()}"
        return [problem(Layer.DISK, said, "free some room there, or choose another --state DIR")]
    if seen.error:
        said = f"{seen.tried} cannot be written: {os.strerror(seen.error).lower()}"
        do = (
            "run the doctor as the user of the node; if it is, let that user own the folder (chown)"
            " or choose another one with --state DIR"
        )
        return [problem(Layer.STATE, said, do)]
    how = "can be written" if seen.exists else "is made at the first start"
    return [ok(Layer.STATE, f"{seen.path} {how}")]


STATE: Final = Check("state", Layer.STATE, _try_folder, judge_folder, needs=(CONFIGURATION,))


@dataclass(frozen=True, slots=True)
class Room:
    """What is free where something is to be stored."""

    what: str
    folder: Path
    space: DiskSpace
    bytes_min: int
    bytes_low: int
    do: str


async def _measure_room(case: Case) -> list[Room]:
    settings = case.seen(CONFIGURATION).usable
    places = [
        (settings.node.state, "the state folder", STATE_BYTES_MIN, STATE_BYTES_LOW, "--state DIR")
    ]
    if any(section.name == "vllm" for section in settings.provider.engines):
        from providers.vllm.hub_cache import cache_folder  # noqa: PLC0415 (only with this engine)

        hub = cache_folder()
        places.append((hub, "downloaded models", STATE_BYTES_MIN, MODELS_BYTES_LOW, "HF_HOME"))
    rooms = []
    for path, what, least, low, knob in places:
        folder = next(one for one in (path, *path.absolute().parents) if one.is_dir())
        space = await in_thread(partial(case.machine.disk_space, folder))
        do = f"free some room there, or choose another disk with {knob}"
        rooms.append(Room(what, folder, space, least, low, do))
    return rooms


def judge_room(seen: list[Room]) -> list[Finding]:
    """One finding for each place."""
    return [_judge_room(room) for room in seen]


def _judge_room(room: Room) -> Finding:
    space = room.space
    said = f"{_size(space.bytes_free)} free for {room.what} in {room.folder}"
    if space.files_free is not None and space.files_free < FILES_LOW:
        left = f"room for {space.files_free} more files only, for {room.what} in {room.folder}"
        return problem(Layer.DISK, left, room.do)
    if space.bytes_free < room.bytes_min:
        return problem(Layer.DISK, said, room.do)
    if space.bytes_free < room.bytes_low:
        return warning(Layer.DISK, said, room.do)
    return ok(Layer.DISK, said)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"


DISK: Final = Check("disk", Layer.DISK, _measure_room, judge_room, needs=(CONFIGURATION,))


@dataclass(frozen=True, slots=True)
class Identity:
    """The node's key file.

    Attributes:
        key: None if there is none or it cannot be used.
        error: why it cannot be used; names the fix.
        owner, folder_owner: user ids; None without file.
    """

    path: Path
    key: KeyPair | None = None
    error: str = ""
    is_private: bool = True
    owner: int | None = None
    folder_owner: int | None = None


async def _read_key(case: Case) -> Identity:
    path = case.seen(CONFIGURATION).usable.node.identity_file
    try:
        status = path.stat()
    except FileNotFoundError:
        return Identity(path)
    except OSError as error:
        return Identity(path, error=f"{path} cannot be looked at: {error.strerror}")
    file = Identity(
        path,
        is_private=not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO),
        owner=status.st_uid,
        folder_owner=path.parent.stat().st_uid,
    )
    try:
        return replace(file, key=read_identity(path))
    except ConfigError as error:
        return replace(file, error=str(error))
    except OSError as error:
        return replace(file, error=f"{path}: {error.strerror}")


def judge_identity(seen: Identity) -> list[Finding]:
    """The key must be readable by the node alone."""
    if not seen.is_private:
        return [problem(Layer.IDENTITY, seen.error, f"run: chmod 600 {seen.path}")]
    if seen.owner != seen.folder_owner:
        said = f"{seen.path} belongs to user {seen.owner}, its folder to user {seen.folder_owner}"
        do = f"run: chown {seen.folder_owner} {seen.path}"
        return [problem(Layer.IDENTITY, said, do)]
    if seen.error:
        do = "restore it from a backup; or delete it, and the node gets a new peer id"
        return [problem(Layer.IDENTITY, seen.error, do)]
    if seen.key is None:
        return [ok(Layer.IDENTITY, f"{seen.path} is made at the first start")]
    return [ok(Layer.IDENTITY, f"{seen.key.peer_id} in {seen.path}")]


IDENTITY: Final = Check(
    "identity", Layer.IDENTITY, _read_key, judge_identity, needs=(CONFIGURATION, STATE)
)
