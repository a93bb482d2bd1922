"""How much memory a model may take here, where the system tells it (Linux)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CONTAINER_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_ACCELERATORS: Final = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg", "accel/accel*")
"""In /dev; with one of them weights need not lie in main memory."""


def memory_free_bytes() -> int | None:
    """Memory that can be had without swapping, container limit included; None if unknown."""
    free = [value for value in (_system_free(), _container_free()) if value is not None]
    return min(free, default=None)


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Whether there is anything that looks like a GPU."""
    return any(True for pattern in _ACCELERATORS for _ in devices.glob(pattern))


def _system_free() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_free() -> int | None:
    """The page cache counts as used there, though it can be had: so it is never the whole truth."""
    try:
        limit = _CONTAINER_LIMIT.read_text(encoding="ascii").strip()
        return int(limit) if limit.isdecimal() else None
    except OSError:
        return None
