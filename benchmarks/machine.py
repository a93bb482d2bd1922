"""One line that says on what the figures were taken."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> str:
    """Date, processor, cores, load, kernel, Python and the libraries that matter."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    libraries = " ".join(f"{name} {version(name)}" for name in ("libp2p", "hypercorn", "trio"))
    return (
        f"# {datetime.now(UTC):%Y-%m-%d} {processor}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {libraries}"
    )
