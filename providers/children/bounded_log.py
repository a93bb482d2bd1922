"""A log file with an upper bound, for what a child process prints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 1 << 20
"""Of the file; as much again is kept of the one before it, ``….1``."""


class BoundedLog:
    """Appends to a file. Writes are small and do not wait.

    Args:
        path: the file; its folder exists. Mode 0600: prompts may be in it.
    """

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        path.touch(mode=0o600)
        self._file = path.open("ab", buffering=0)

    def begin(self, title: str) -> None:
        """Mark where a new run starts."""
        self.write(f"--- {title}\n".encode())

    def write(self, data: bytes) -> None:
        """Append; the file before is dropped when this one is full."""
        # A full disk must not stop the engine.
        with contextlib.suppress(OSError):
            self._append(data[: self._bytes_max])

    def _append(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._bytes_max:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self.path.touch(mode=0o600)
            self._file = self.path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()
