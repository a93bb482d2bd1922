"""What the doctor asks of the machine itself; a test hands in one with the fault it wants."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

_CLOCK_UNSYNCHRONIZED: Final = 5
"""TIME_ERROR of adjtimex(2): no program keeps the kernel's clock in time."""
_TIMEX_BYTES: Final = 256
"""`struct timex` has 208; all zero it asks and changes nothing."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What is left for this user on a file system."""

    bytes_free: int
    files_free: int | None = None
    """None where the file system has no fixed number of files."""


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_package(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _now() -> float:
    return time.time_ns() / 1e9


def _open_files_max() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _disk_space(folder: Path) -> DiskSpace:
    found = os.statvfs(folder)
    files = found.f_favail if found.f_files else None
    return DiskSpace(found.f_bavail * found.f_frsize, files)


def _clock_is_kept() -> bool | None:
    """Whether the kernel says that something, such as NTP, sets its clock; None if it is silent."""
    if sys.platform != "linux":
        return None
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state: int = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _CLOCK_UNSYNCHRONIZED


@dataclass(frozen=True, slots=True)
class Machine:
    """Each attribute is one question.

    Attributes:
        version_of: of an installed distribution, None if it is not there.
        has_package: whether a module can be imported.
        now: seconds since 1970, by this machine's clock.
        open_files_max: the limit a node may raise itself to.
        user: the effective user id.
    """

    python: tuple[int, ...] = tuple(sys.version_info[:3])
    user: int = os.geteuid()
    version_of: Callable[[str], str | None] = _version_of
    has_package: Callable[[str], bool] = _has_package
    now: Callable[[], float] = _now
    open_files_max: Callable[[], int] = _open_files_max
    disk_space: Callable[[Path], DiskSpace] = _disk_space
    clock_is_kept: Callable[[], bool | None] = _clock_is_kept
