"""A small program that outlives its node by a moment: it clears away what an engine leaves.

The node starts one beside each engine's process (`safeguard`), in a session of its own, and holds
a pipe to it. When the node dies, however it dies, the pipe ends; then the reaper kills what still
runs of the engine and removes its sockets and its run file. Usage: ``python -m
providers.children.reaper RUN_FILE``; the run, as `orphans` writes it, is the first line of its
input. Any engine can use it: give `process.start_child` a `Traces`.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Final

from providers.children.orphans import Run, decode, kill, read_run, remove_traces

PATIENCE_SECONDS: Final = 30.0
"""A process that holds a hundred gigabytes takes its time to disappear."""

POLL_SECONDS: Final = 0.02


def main() -> None:
    """Wait for the end of the input, then clear away."""
    # A service manager may send these to everybody; the node says itself when it is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = decode(sys.stdin.buffer.readline())
    if run is None:
        sys.exit("this program is started by a node")
    while sys.stdin.buffer.read(4096):
        pass
    run_file = Path(sys.argv[1])
    latest = read_run(run_file)  # the node may have learnt more since
    clear_away(latest if latest and latest.leader == run.leader else run, run_file)


def clear_away(run: Run, run_file: Path) -> None:
    """Kill the engine's processes, wait until they are gone, remove what they left."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while kill(run) and time.monotonic() < give_up_at:
        time.sleep(POLL_SECONDS)
    remove_traces(run, run_file)


if __name__ == "__main__":
    main()
