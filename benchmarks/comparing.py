"""Two ways of doing the same thing, measured in turns, so that what the machine does meanwhile
falls on both; and a row of a table that says whether a goal is met."""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.processes import cpu_seconds

Way = Callable[[], Awaitable[float]]
"""Does it for a short while; returns the figure."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Medians over the rounds; `ratio` is the median of the rounds' own ratios. CPU seconds are
    those of all processes, per round. `best` is what the round showed that was disturbed least."""

    value: float
    best: float
    baseline: float
    ratio: float
    cpu_seconds: float
    baseline_cpu_seconds: float


async def compare(
    rounds: int, way: Way, baseline: Way, pids: Sequence[int], *, more_is_better: bool = False
) -> Compared:
    """Both in turns, `rounds` times, after one round that is not counted."""
    seen: dict[Way, list[tuple[float, float]]] = {way: [], baseline: []}
    for number in range(rounds + 1):
        order = (way, baseline) if number % 2 else (baseline, way)
        for each in order:
            before = _cpu(pids)
            figure = await each()
            if number:
                seen[each].append((figure, _cpu(pids) - before))
    value, cpu = zip(*seen[way], strict=True)
    base, base_cpu = zip(*seen[baseline], strict=True)
    return Compared(
        statistics.median(value),
        max(value) if more_is_better else min(value),
        statistics.median(base),
        statistics.median(one / other for one, other in zip(value, base, strict=True)),
        statistics.median(cpu),
        statistics.median(base_cpu),
    )


def _cpu(pids: Sequence[int]) -> float:
    return sum(map(cpu_seconds, (os.getpid(), *pids)))


@dataclass(frozen=True, slots=True)
class Row:
    """One goal.

    Attributes:
        goal: its bound in words; empty for a figure that has none.
        baseline_name: what `baseline` was measured on.
        cpu: user plus system time of all processes, with its unit.
        note: what the figure is of, when that is not plain.
    """

    name: str
    goal: str
    value: float
    best: float
    baseline_name: str
    baseline: float
    ratio: float
    cpu: str
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        verdict = ("pass" if self.passed else "MISS") if self.goal else ""
        return (
            f"{self.name:36}{self.goal:>18}{_short(self.value):>10}{_short(self.best):>10}{_short(self.baseline):>12}"
            f"{self.ratio:>8.2f}  {verdict:5}{self.cpu:>30}  {self.baseline_name}"
        )


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


HEADER = (
    f"{'':36}{'goal':>18}{'median':>10}{'best':>10}{'baseline':>12}{'ratio':>8}  {'':5}"
    f"{'CPU of all ends':>30}  baseline"
)
