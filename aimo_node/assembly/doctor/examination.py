"""The examination: checks run side by side as far as they do not need each other, told in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog
import trio

from aimo_node.assembly.doctor.check import Case, Check, Subject
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict, skipped, warning

TOTAL_SECONDS: Final = 20.0
"""Somebody sits there and waits."""
_SLOW: Final = "try again when the machine is less busy; a disk that hangs looks like this, too"
_BUG: Final = "a bug of the doctor: please report it with what it logged"

_log = structlog.get_logger()
_MET: Final = frozenset({Verdict.OK, Verdict.WARNING})


async def examine(
    subject: Subject,
    checks: Sequence[Check[Any]],
    tell: Callable[[Finding], None],
    *,
    seconds: float = TOTAL_SECONDS,
) -> list[Finding]:
    """Run all checks and return their findings, in the order of `checks`.

    Args:
        tell: called with each finding, in that order, as soon as it is known.
        seconds: what is not known by then is reported as such.
    """
    examination = _Examination(subject, checks, tell)
    with trio.move_on_after(seconds):
        await examination.run()
    examination.give_up(seconds)
    return examination.findings


class _Examination:
    """See `examine`."""

    def __init__(
        self, subject: Subject, checks: Sequence[Check[Any]], tell: Callable[[Finding], None]
    ) -> None:
        self._case = Case(subject)
        self._checks = checks
        self._tell = tell
        self._ended = {check.name: trio.Event() for check in checks}
        self._results: dict[str, tuple[Finding, ...]] = {}
        self._reasons: dict[str, str] = {}
        """Why checks were skipped."""
        self._told = 0
        self.findings: list[Finding] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for check in self._checks:
                nursery.start_soon(self._run_in_turn, check)

    def give_up(self, seconds: float) -> None:
        """Say of every check without result that there was no time for it."""
        for check in self._checks:
            if check.name not in self._results:
                late = warning(check.layer, f"not known after {seconds:g} s in all", _SLOW)
                self._end(check, [late])

    async def _run_in_turn(self, check: Check[Any]) -> None:
        for other in (*check.needs, *check.follows):
            await self._ended[other.name].wait()
        unmet = next((other for other in check.needs if not self._is_met(other)), None)
        if unmet is not None:
            why = self._reasons[check.name] = self._why(unmet)
            self._end(check, [skipped(check.layer, why)])
            return
        self._end(check, await self._look(check))

    async def _look(self, check: Check[Any]) -> Sequence[Finding]:
        try:
            with trio.move_on_after(check.seconds) as scope:
                seen = await check.probe(self._case)
                self._case.note(check, seen)
            if scope.cancelled_caught:
                late = f"no answer within {check.seconds:g} s"
                return [warning(check.layer, late, _SLOW)]
            findings: Sequence[Finding] = check.judge(seen)
        except Exception as error:  # noqa: BLE001 (the root of a check: the others go on)
            _log.exception("doctor.crashed", check=check.name)
            return [warning(check.layer, f"the check itself failed: {error!r}", _BUG)]
        return findings

    def _is_met(self, other: Check[Any]) -> bool:
        seen = self._case.glimpse(other) is not None
        return seen and any(one.verdict in _MET for one in self._results[other.name])

    def _why(self, unmet: Check[Any]) -> str:
        """The root of it, not the check in between that was skipped as well."""
        if unmet.name in self._reasons:
            return self._reasons[unmet.name]
        is_problem = any(one.verdict is Verdict.PROBLEM for one in self._results[unmet.name])
        how = "has a problem" if is_problem else "has no result"
        return f"not looked at, because {unmet.name} {how}"

    def _end(self, check: Check[Any], findings: Sequence[Finding]) -> None:
        self._results[check.name] = tuple(replace(one, check=check.name) for one in findings)
        self._ended[check.name].set()
        while self._told < len(self._checks):
            results = self._results.get(self._checks[self._told].name)
            if results is None:
                return
            self._told += 1
            self.findings += results
            for finding in results:
                self._tell(finding)


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether something was found that has to be mended."""
    return any(finding.verdict is Verdict.PROBLEM for finding in findings)


def layers_of_problems(findings: Sequence[Finding]) -> list[Layer]:
    """The failing layers, each once, in the order in which they were found."""
    bad = (finding.layer for finding in findings if finding.verdict is Verdict.PROBLEM)
    return list(dict.fromkeys(bad))
