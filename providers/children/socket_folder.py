"""Where an engine's Unix socket lies: a private folder with a path short enough for the system."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final

import trio

from aimo_node.errors import EngineStartFailed

SOCKET_PATH_BYTES_MAX: Final = 100
"""Linux allows 107 bytes, macOS 103."""

LEAVING_SECONDS: Final = 3.0
"""How long the process of a node that was killed may take to disappear."""

SHORTEST: Final = "/tmp"  # noqa: S108 (a private folder is made in it)
"""Where folders are made if those in TMPDIR would have names that are too long."""

_SHORT_FOLDER: Final = re.compile(r"aimo-\d+-[0-9a-f]{12}")


async def claim_socket(state_folder: Path, engine: str) -> Path:
    """A path for the socket of `engine`, free of what an earlier run left.

    It lies in `state_folder`, or in a folder in the system's temporary one if that is too deep.

    Raises:
        EngineStartFailed: the folder belongs to somebody else, another node uses it, or every path
            is too long.
    """
    name = f"{engine}.sock"
    path = state_folder / name
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        path = _short_folder(state_folder, name, SOCKET_PATH_BYTES_MAX) / name
    give_up_at = trio.current_time() + LEAVING_SECONDS
    while is_listening(path):
        if trio.current_time() > give_up_at:
            raise EngineStartFailed(
                f"another {engine} engine listens on {path}: is a node with this --state running?"
            )
        await trio.sleep(0.02)
    path.unlink(missing_ok=True)
    return path


def nearby_folder(state_folder: Path, name: str, path_bytes_max: int) -> Path:
    """A new private folder for what a program makes itself, such as sockets with long names.

    It lies in `state_folder`, or in the system's temporary one if that is too deep. What an earlier
    run left in it is removed.

    Raises:
        EngineStartFailed: the folder belongs to somebody else, or every path is too long.
    """
    path = state_folder / name
    if len(os.fsencode(path)) > path_bytes_max:
        path = _short_folder(state_folder, name, path_bytes_max) / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def remove_socket(path: Path) -> None:
    """Remove the socket, and its folder if it was made for it; idempotent."""
    path.unlink(missing_ok=True)
    if _SHORT_FOLDER.fullmatch(path.parent.name):
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def socket_traces(path: Path) -> tuple[Path, ...]:
    """What `remove_socket` would remove, for whoever has to do it in its place."""
    made_for_it = _SHORT_FOLDER.fullmatch(path.parent.name)
    return (path.parent,) if made_for_it else (path,)


def is_listening(path: Path) -> bool:
    """Whether somebody answers on the socket; does not wait."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _short_folder(state_folder: Path, name: str, path_bytes_max: int) -> Path:
    """One folder for each user and state folder, so that a later run finds what this one left.

    It has room for `name`: the temporary folder that TMPDIR names may be deep itself.
    """
    digest = hashlib.sha256(os.fsencode(state_folder.absolute())).hexdigest()[:12]
    own = f"aimo-{os.getuid()}-{digest}"
    folders = [Path(parent) / own for parent in (tempfile.gettempdir(), SHORTEST)]
    fitting = [one for one in folders if len(os.fsencode(one / name)) <= path_bytes_max]
    if not fitting:
        raise EngineStartFailed(
            f"{folders[0] / name} is too long for a socket: set TMPDIR to a shorter folder"
        )
    folder = fitting[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EngineStartFailed(f"{folder} is not a private folder of this user: remove it")
    return folder
