"""Files the command line owns: the lock on a state folder, the file with the join string."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aimo_node.errors import ConfigError

LOCK_FILE: Final = "lock"
LOCK_SECONDS: Final = 5.0
"""How long a node waits for the one before it to be gone: a restart overlaps a little."""

_POLL_SECONDS: Final = 0.1


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make the folder (mode 0700) if need be, and keep other processes of ours out of it.

    Raises:
        ConfigError: it cannot be made or written, or another process uses it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        is_taken = isinstance(error, FileExistsError)
        reason = "it is not a folder" if is_taken else error.strerror
        raise ConfigError(
            f"cannot use {folder} as state folder: {reason}; choose one with --state"
        ) from error
    with os.fdopen(descriptor, "r+", encoding="ascii") as file:
        _lock(folder, descriptor)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        # The lock goes with the descriptor, so also when this process is killed.
        yield


def _lock(folder: Path, descriptor: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another aimo uses {folder}: give this one its own with --state DIR"
                ) from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def prepare_join_file(path: Path) -> None:
    """Remove what an earlier start left, so that nobody joins by a string of the past.

    Raises:
        ConfigError: the file's folder is missing or cannot be written.
    """
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: its folder is missing or not writable")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot replace {path}: {error.strerror}") from error


def write_join_file(path: Path, join: str) -> None:
    """Write the join string whole or not at all, readable by owner and group."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(join + "\n")
            os.fchmod(descriptor, 0o640)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
