#!/usr/bin/env python3
"""Install the project and its locked packages into a virtual environment.

Every package is checked against the hashes in scripts/locks; nothing is compiled. The project
itself is installed last and without network. An installation that was cut short is never
trusted: the environment carries `.aimo-sound` only while no change is under way, and one
without it is made anew. Standard library only; Python 3.11 or newer.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import machine
from pip_run import (
    LOG_NAME,
    PipFailedError,
    Progress,
    explain,
    has_changed_packages,
    missing_wheel,
    run_pip,
    run_quietly,
)

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "scripts" / "locks"
STANDIN = ROOT / "scripts" / "standins" / "fastecdsa"

# Pure Python, published as source only; the locked setuptools builds them without a compiler.
SOURCE_ONLY = "python-baseconv,varint"

PINNED = re.compile(r"^[a-z0-9.-]+==", re.MULTILINE)


class Interrupted(BaseException):
    """A signal asked us to stop; a BaseException, so that nothing on the way swallows it."""


class Environment:
    """One virtual environment and its two marks: `.aimo-building`, then `.aimo-sound`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._building = folder / ".aimo-building"
        self._sound = folder / ".aimo-sound"

    @property
    def is_sound(self) -> bool:
        """No change was cut short, and the interpreter behind it still exists."""
        return self._sound.exists() and os.access(self.folder / "bin" / "python", os.X_OK)

    @property
    def is_foreign(self) -> bool:
        """Something is there that we did not make."""
        marks = (self._building, self._sound)
        is_empty = not self.folder.is_dir() or not any(self.folder.iterdir())
        return self.folder.exists() and not is_empty and not any(mark.exists() for mark in marks)

    def create(self) -> None:
        """Make it anew, with pip in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._building.touch()
        # In a virtual environment sys.executable is a link that may lie in the folder just removed.
        interpreter = getattr(sys, "_base_executable", sys.executable)
        title = f"Creating {self.folder.name} with Python {sys.version.split()[0]}"
        command = [interpreter, "-m", "venv", str(self.folder)]
        run_quietly(command, self.folder / LOG_NAME, Progress(title, self.folder))

    def pip(self, title: str, arguments: list[str], packages: int = 0) -> None:
        """Run pip in it. The mark `.aimo-sound` is away while packages may be half written."""
        was_sound = self._sound.exists()
        self._building.touch()
        self._sound.unlink(missing_ok=True)
        try:
            run_pip(self.folder, title, arguments, packages=packages)
        except BaseException:
            if was_sound and not has_changed_packages(self.folder):
                self.mark_sound()
            raise
        if was_sound:
            self.mark_sound()

    def mark_sound(self) -> None:
        """Declare that every package in it is whole."""
        self._sound.touch()
        self._building.unlink(missing_ok=True)

    def discard_if_unsound(self) -> None:
        """Remove what an interruption left half made."""
        if not self.is_foreign and not self.is_sound:
            shutil.rmtree(self.folder, ignore_errors=True)


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def install_packages(environment: Environment, *, dev: bool) -> None:
    """Install the locked packages; those already there cost nothing and need no network."""
    locks = [LOCKS / "runtime.txt"] + ([LOCKS / "dev.txt"] if dev else [])
    packages = sum(len(PINNED.findall(lock.read_text())) for lock in locks)
    locked = ["--no-deps", "--require-hashes"]
    environment.pip(
        "Installing build tools",
        [*locked, "--only-binary", ":all:", "-r", str(LOCKS / "build.txt")],
    )
    lists = [part for lock in locks for part in ("-r", str(lock))]
    wheels_only = ["--only-binary", ":all:", "--no-binary", SOURCE_ONLY]
    build_here = ["--no-build-isolation", "--use-pep517"]
    try:
        environment.pip(
            "Installing packages", [*locked, *wheels_only, *build_here, *lists], packages
        )
    except PipFailedError as failure:
        name = missing_wheel(failure.output)
        if name is None:
            raise
        lacking = machine.lacking_for_building()
        if lacking:
            say(f"There is no ready-made package of {name} for this machine, so it must be built.")
            raise SystemExit(machine.describe(lacking)) from None
        say(f"There is no ready-made package of {name} for this machine: building from source")
        environment.pip("Installing packages", [*locked, "--prefer-binary", *lists], packages)


def install_project(environment: Environment, *, editable: bool) -> None:
    """Install the stand-in for fastecdsa and this project, without network."""
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fastecdsa"  # building writes into the source folder
        shutil.copytree(STANDIN, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
        environment.pip("Installing the stand-in for fastecdsa", [*offline, str(copy)])
    project = ["--editable", str(ROOT)] if editable else [str(ROOT)]
    environment.pip("Installing AIMO Node", [*offline, *project])


@contextmanager
def only_one_installation() -> Iterator[None]:
    """Let two starts at once follow each other; the kernel frees the lock of a dead one.

    pip inherits the lock, so that a pip whose parent was killed is waited for as well.
    """
    descriptor = os.open(ROOT / "scripts", os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another installation is running here; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def on_signal(number: int, _frame: FrameType | None) -> None:
    """Turn the first signal into an exception; later ones do not disturb the tidying up."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def install(options: argparse.Namespace) -> None:
    """Bring the environment to what the locks say."""
    environment = Environment(options.venv.resolve())
    if environment.is_foreign:
        raise SystemExit(
            f"{environment.folder} was not made by this script; move it away and start again."
        )
    try:
        if not environment.is_sound:
            environment.create()
        install_packages(environment, dev=options.dev)
        install_project(environment, editable=not options.copy)
        environment.mark_sound()
    except (PipFailedError, Interrupted):
        environment.discard_if_unsound()
        raise


def main(arguments: list[str]) -> int:
    """Return 0 when installed, 1 when something is lacking or failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Install into a virtual environment.")
    parser.add_argument("--dev", action="store_true", help="also what the checks need")
    parser.add_argument("--copy", action="store_true", help="copy the project instead of linking")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    options = parser.parse_args(arguments)
    lacking = machine.lacking_for_wheels(ROOT)
    if lacking:
        print(machine.describe(lacking), file=sys.stderr)
        return 1
    return run_to_its_end(lambda: install(options))


def run_to_its_end(installation: Callable[[], None]) -> int:
    """Run it alone, heed signals, say how it ended; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    started = time.monotonic()
    try:
        with only_one_installation():
            installation()
    except Interrupted:
        print("\nInterrupted; nothing half made was left behind.", file=sys.stderr)
        return 130
    except PipFailedError as failure:
        print(explain(failure.output), file=sys.stderr)
        return 1
    say(f"Installed in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
