"""What this machine lacks for an installation, and the one line that mends it."""

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

DISK_BYTES_MIN = 700_000_000  # the packages with compiled bytecode, and room to unpack them

# What is lacking -> package manager -> the packages that bring it.
PACKAGES: dict[str, dict[str, str]] = {
    "Python's venv module": {
        "apt-get": f"python{sys.version_info[0]}.{sys.version_info[1]}-venv",
        "dnf": "python3",
        "zypper": "python3",
        "pacman": "python",
        "brew": "python@3.13",
    },
    "the OpenMP library libgomp.so.1": {
        "apt-get": "libgomp1",
        "dnf": "libgomp",
        "zypper": "libgomp1",
        "pacman": "gcc-libs",
    },
    "the C++ library libstdc++.so.6": {
        "apt-get": "libstdc++6",
        "dnf": "libstdc++",
        "zypper": "libstdc++6",
        "pacman": "gcc-libs",
    },
    "a C and C++ compiler": {
        "apt-get": "build-essential",
        "dnf": "gcc gcc-c++ make",
        "zypper": "gcc gcc-c++ make",
        "pacman": "base-devel",
    },
    "Python's headers": {
        "apt-get": f"python{sys.version_info[0]}.{sys.version_info[1]}-dev",
        "dnf": "python3-devel",
        "zypper": "python3-devel",
        "pacman": "python",
    },
}
INSTALL_LINES = {
    "apt-get": "{sudo}apt-get install -y {packages}",
    "dnf": "{sudo}dnf install -y {packages}",
    "zypper": "{sudo}zypper install -y {packages}",
    "pacman": "{sudo}pacman -S --needed {packages}",
    "brew": "brew install {packages}",
}


def lacking_for_wheels(folder: Path) -> list[str]:
    """Name what a `.venv` in `folder` needs, made of ready-made packages, and is not here."""
    lacking = []
    if any(importlib.util.find_spec(name) is None for name in ("ensurepip", "venv", "ssl")):
        lacking.append("Python's venv module")
    if sys.platform == "linux":
        libraries = {
            "the OpenMP library libgomp.so.1": "libgomp.so.1",
            "the C++ library libstdc++.so.6": "libstdc++.so.6",
        }
        lacking += [what for what, name in libraries.items() if not _can_load(name)]
        if platform.libc_ver()[0] != "glibc":
            lacking.append(
                "a system with glibc (there are no packages for musl; use the container)"
            )
    if shutil.disk_usage(folder).free < DISK_BYTES_MIN:
        lacking.append(f"disk space: {DISK_BYTES_MIN // 1_000_000} MB free")
    return lacking


def lacking_for_building() -> list[str]:
    """Name what building a package from source needs and this machine does not have."""
    lacking = []
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        lacking.append("a C and C++ compiler")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacking.append("Python's headers")
    return lacking


def mending_line(lacking: list[str]) -> str | None:
    """Return the one command that brings everything in `lacking` that a package can bring.

    None if no known package manager is here, or nothing it could bring.
    """
    if sys.platform == "darwin" and "a C and C++ compiler" in lacking:
        return "xcode-select --install"
    for manager, line in INSTALL_LINES.items():
        if shutil.which(manager):
            packages = [PACKAGES.get(what, {}).get(manager, "") for what in lacking]
            wanted = " ".join(dict.fromkeys(name for name in packages if name))
            sudo = "" if os.geteuid() == 0 else "sudo "
            return line.format(sudo=sudo, packages=wanted) if wanted else None
    return None


def describe(lacking: list[str]) -> str:
    """Say in a few lines what is lacking and how to mend it."""
    lines = ["This machine lacks:", *(f"  - {what}" for what in lacking)]
    line = mending_line(lacking)
    if line:
        lines.append(f"Mend it with:  {line}")
    return "\n".join(lines)


def _can_load(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
