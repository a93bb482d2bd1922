"""Whether this process was stopped or its machine asleep, told from two clocks. Pure.

A stopped process (SIGSTOP, a frozen container) finds that the steady clock has gone on without it.
While a machine sleeps the steady clock of Linux stands still, and the clock since its boot goes on.
"""

from __future__ import annotations

from typing import Final

TICK_SECONDS: Final = 1.0
"""How often the clocks are looked at."""
AWAY_SECONDS: Final = 3.0
"""A gap that is shorter comes from a busy machine, and no link is given up for it."""


class Wakefulness:
    """Compares the clocks with what they were a tick ago."""

    def __init__(self, steady: float, boot: float) -> None:
        """`steady`, `boot`: seconds of a clock that may, and one that must count sleep."""
        self._steady = steady
        self._boot = boot

    def look(self, steady: float, boot: float) -> float:
        """For how many seconds this process did not run since the last look, if for more than
        `AWAY_SECONDS`; else 0. To be called every `TICK_SECONDS`."""
        passed = max(steady - self._steady, boot - self._boot)
        self._steady, self._boot = steady, boot
        away = passed - TICK_SECONDS
        return away if away > AWAY_SECONDS else 0.0
