"""Waits for a server that may still be starting, and tells the owner so."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from aimo_node.errors import EngineFailed, EngineStartFailed
from aimo_node.ports.engine import Progress
from providers.http.upstream import Unreachable

RETRY_SECONDS: Final = 1.0
TELL_SECONDS: Final = 5.0
"""Between two lines of progress that say the same."""

Answer = TypeVar("Answer")


async def wait_for_upstream(
    ask: Callable[[], Awaitable[Answer]], endpoint: str, seconds: float, progress: Progress
) -> Answer:
    """What `ask` returns once it does not fail any more.

    Args:
        ask: one try; it limits its own time.
        endpoint: as the owner gave it.
        seconds: no try begins later than this; there is always one.

    Raises:
        EngineStartFailed: it still fails, or will for ever.
    """
    deadline = trio.current_time() + seconds
    told, tell_at = "", -math.inf
    while True:
        try:
            return await ask()
        except EngineFailed as error:
            reason, lasting = _reason(error)
            left = deadline - trio.current_time()
            if lasting or left <= 0:
                raise EngineStartFailed(
                    _sentence(endpoint, reason, seconds, lasting=lasting)
                ) from error
        if reason != told or trio.current_time() >= tell_at:
            told, tell_at = reason, trio.current_time() + TELL_SECONDS
            progress(f"waiting for {endpoint} ({reason}), {left:.0f} s left")
        await trio.sleep(min(RETRY_SECONDS, left))


def _reason(error: EngineFailed) -> tuple[str, bool]:
    if isinstance(error, Unreachable):
        return error.reason or str(error), error.lasting
    return str(error), False


def _sentence(endpoint: str, reason: str, seconds: float, *, lasting: bool) -> str:
    if lasting:
        return f"{endpoint} cannot be used: {reason}"
    return (
        f"{endpoint} does not answer ({reason}), also after {seconds:g} s: is it the right address,"
        " and the server running? (--start-seconds among the engine's arguments waits longer)"
    )
