"""The number of a node's life: greater each time it starts, whatever the clock says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from aimo_node.errors import ConfigError

_DIGITS_MAX: Final = 15
"""Milliseconds until the year 33000; what a damaged file says beyond that is not believed."""


def next_incarnation(path: Path, now_ms: int) -> int:
    """The number for the life that begins now; remembered in `path` for the next one.

    It is the time, so that a node that lost its state starts higher too. But a clock may be set
    back, and whoever still remembers the life before would take the new one for old news.

    Raises:
        ConfigError: `path` cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        incarnation = max(now_ms, _last(path) + 1)
        draft.write_text(f"{incarnation}\n", "ascii")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return incarnation


def _last(path: Path) -> int:
    """The number of the last life; 0 if there was none or the file is damaged."""
    try:
        text = path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdigit() and len(text) <= _DIGITS_MAX else 0
