"""For programs that a node starts: when the node dies, however it dies, they die too.

The node holds the writing end of the child's standard input. When it is gone, the kernel itself
kills the child's process group (Linux), even while native code holds Python's lock, as it does
for as long as llama.cpp loads weights. Elsewhere a thread does it, as soon as it can.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import threading


def die_with_parent() -> None:
    """Arrange it; called once, first thing, by a child that leads its own process group."""
    if os.getpgrp() != os.getpid():
        sys.exit("this program is started by a node, in a process group of its own")
    if sys.platform == "linux":
        group = os.getpgrp()
        fcntl.fcntl(0, fcntl.F_SETOWN, -group)
        fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        if _parent_is_gone():  # it was too early for the kernel to tell us
            os.killpg(group, signal.SIGKILL)
    threading.Thread(target=_wait_and_die, daemon=True).start()


def _parent_is_gone() -> bool:
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    return bool(poll.poll(0))


def _wait_and_die() -> None:
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
