"""Run pip quietly: one line of progress, the full output in a log, failures explained."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.1
STOP_SECONDS = 5.0
BAR_COLUMNS = 24
LOG_LINES_SHOWN = 15

# These would send packages elsewhere than into the environment, or shadow what is in it.
ENVIRONMENT_DROPPED = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PYTHONHOME")

UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
    r"|Network is unreachable|Temporary failure in name resolution"
)
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
NO_WHEEL = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+?)==")
FETCHED = re.compile(r"^(?:Collecting|Requirement already satisfied)", re.MULTILINE)
CHANGES_BEGIN = "Installing collected packages"
LOG_NAME = "install.log"


class PipFailedError(Exception):
    """pip ended with an error; `output` is all it said."""

    def __init__(self, output: str) -> None:
        super().__init__("pip failed")
        self.output = output


class Progress:
    """One line that is redrawn on a terminal, or one line per step elsewhere."""

    def __init__(self, title: str, folder: Path, packages: int = 0) -> None:
        self._title = title
        self._packages = packages
        self._folder = folder
        self._is_terminal = sys.stdout.isatty()
        if not self._is_terminal:
            count = f" ({packages})" if packages else ""
            print(f"{title}{count}", flush=True)

    def show(self, output: str) -> None:
        """Redraw from what pip has said so far and what lies in the environment."""
        if not self._is_terminal:
            return
        if CHANGES_BEGIN in output:
            unpacked = self._folder.glob("lib/*/site-packages/*.dist-info")
            done, doing = len(list(unpacked)), "unpacking"
        else:
            done, doing = len(FETCHED.findall(output)), "fetching"
        self._draw(f"{self._bar(done)} {doing}" if self._packages else "…")

    def finish(self, word: str) -> None:
        """Leave a last line behind."""
        if self._is_terminal:
            self._draw(word)
            print(flush=True)

    def _bar(self, done: int) -> str:
        done = min(done, self._packages)
        filled = BAR_COLUMNS * done // self._packages
        return f"[{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] {done}/{self._packages}"

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{f'{self._title}: {text}':<{columns}.{columns}}", end="", flush=True)


def run_quietly(command: list[str], log: Path, progress: Progress) -> None:
    """Run a command with its output in `log`; raise PipFailedError if it fails.

    Whatever ends the wait, the command and everything it started are gone afterwards.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT_DROPPED}
    environment |= {"PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1"}
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            close_fds=False,  # the lock of this installation goes along
        )
    try:
        while process.poll() is None:
            progress.show(log.read_text(errors="replace"))
            time.sleep(POLL_SECONDS)
    finally:
        _stop_group(process)
    output = log.read_text(errors="replace")
    progress.finish("failed" if process.returncode else "done")
    if process.returncode:
        raise PipFailedError(output)


def run_pip(folder: Path, title: str, arguments: list[str], *, packages: int = 0) -> None:
    """Run `pip install` in the environment `folder`; a bar counts up to `packages`, if given.

    The output stays in `LOG_NAME` there. Raises PipFailedError.
    """
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--retries", "2"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", *arguments]
    run_quietly(command, folder / LOG_NAME, Progress(title, folder, packages))


def has_changed_packages(folder: Path) -> bool:
    """Whether the last pip in the environment `folder` got beyond fetching."""
    return CHANGES_BEGIN in (folder / LOG_NAME).read_text(errors="replace")


def missing_wheel(output: str) -> str | None:
    """Name the package that has no ready-made file for this machine, if that is why pip failed."""
    found = NO_WHEEL.search(output)
    is_reachable = not UNREACHABLE.search(output) and UNTRUSTED not in output
    return found[1] if found and is_reachable else None


def explain(output: str) -> str:
    """Say in a line why pip failed, with the end of its output where no line will do."""
    if UNREACHABLE.search(output):
        return "The package registry could not be reached. Connect to the network and start again."
    if UNTRUSTED in output:
        return (
            "This machine does not trust the package registry's certificate. If a proxy presents\n"
            "one of its own, name its file: PIP_CERT=/path/to/ca.pem"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return (
            "A package differs from what scripts/locks says, so nothing of it was installed.\n"
            + _tail(output)
        )
    if "No space left on device" in output:
        return "The disk is full."
    return "pip failed; the end of its output:\n" + _tail(output)


def _tail(output: str) -> str:
    return "\n".join(f"  {line}" for line in output.splitlines()[-LOG_LINES_SHOWN:])


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
