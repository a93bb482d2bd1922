"""Questions to the system that may block: a disk that hangs must not hang the doctor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

Answer = TypeVar("Answer")


async def in_thread(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns; when cancelled it is left behind."""
    return await trio.to_thread.run_sync(
        ask,
        abandon_on_cancel=True,  # type: ignore[call-arg, unused-ignore] # stubs of older trio
    )
