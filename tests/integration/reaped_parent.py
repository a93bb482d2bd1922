"""A node in miniature for `test_reaper`: starts a child that would outlive it, and is killed.

Usage: reaped_parent.py STATE_FOLDER. Says the numbers of child and grandchild on standard output,
then sleeps.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from providers.children.process import Farewell, start_child
from providers.children.safeguard import Traces

CHILD = """
import mmap, os, signal, socket, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
socket.socket(socket.AF_UNIX).bind("engine.sock")
os.mkdir("sockets")
open("sockets/one", "w").close()
grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
if os.path.isdir("/dev/shm"):
    shared = open(f"/dev/shm/psm_aimo-{os.getpid()}", "w+b")
    shared.truncate(4096)
    mapped = mmap.mmap(shared.fileno(), 4096)
print(grandchild.pid, flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Stubborn:
    """A program that does not care whether its parent lives."""

    folder: Path
    module: str = "stubborn"

    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", CHILD]

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


class Nowhere:
    """A log for what nobody reads."""

    def write(self, data: bytes) -> None:
        """Forget it."""


async def start(folder, grace_seconds=0.0):
    """The child and the number of its grandchild."""
    traces = Traces(folder / "engine.run", (folder / "engine.sock", folder / "sockets"))
    child = await start_child(Stubborn(folder), Nowhere(), Farewell(grace_seconds, traces))
    grandchild = int(await child.read_answer())
    await child.note_shared_memory()
    return child, grandchild


async def main():
    child, grandchild = await start(Path(sys.argv[1]))
    sys.stdout.write(f"{child.pid} {grandchild}\n")
    sys.stdout.flush()
    await child.copy_log()


if __name__ == "__main__":
    trio.run(main)
