"""How checks are run: side by side, in order, bounded; a bug in one does not end the others."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from aimo_node.assembly.doctor.check import Case, Check, Subject
from aimo_node.assembly.doctor.checkup import CHECKS
from aimo_node.assembly.doctor.examination import TOTAL_SECONDS, examine, has_problem
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict, ok, problem


def nothing():
    raise NotImplementedError


SUBJECT = Subject(nothing, "lock", 1)


def check(name: str, after: float = 0.0, *, found=ok, **more) -> Check[str]:
    async def probe(_case: Case) -> str:
        await trio.sleep(after)
        return name

    def judge(seen: str) -> list[Finding]:
        return [ok(Layer.STATE, seen) if found is ok else problem(Layer.STATE, seen, "mend it")]

    return Check(name, Layer.STATE, probe, judge, **more)


async def run(*checks: Check) -> list[Finding]:
    told: list[Finding] = []
    findings = await examine(SUBJECT, checks, told.append)
    assert told == findings
    return findings


async def test_checks_run_side_by_side_and_are_told_in_order(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    findings = await run(check("a", 3), check("b", 1), check("c", 2))
    assert [one.check for one in findings] == ["a", "b", "c"]
    assert trio.current_time() - started == 3


async def test_what_is_known_is_told_before_the_end(autojump_clock: MockClock) -> None:
    told: list[float] = []
    start = trio.current_time()
    checks = [check("a", 1), check("b", 3)]
    await examine(SUBJECT, checks, lambda _one: told.append(trio.current_time() - start))
    assert told == [1, 3]


async def test_a_check_whose_need_has_a_problem_is_skipped_and_says_why() -> None:
    first = check("first", found=problem)
    second = check("second", needs=(first,))
    third = check("third", needs=(second,))
    findings = await run(first, second, third)
    assert [one.verdict for one in findings] == [Verdict.PROBLEM, Verdict.SKIPPED, Verdict.SKIPPED]
    assert findings[1].seen == "not looked at, because first has a problem"
    assert findings[2].seen == findings[1].seen, "the root of it helps, not what is in between"
    assert has_problem(findings)


async def test_a_check_that_only_follows_runs_all_the_same() -> None:
    first = check("first", found=problem)
    findings = await run(first, check("second", follows=(first,)))
    assert findings[1].verdict is Verdict.OK


async def test_a_check_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    hangs = check("hangs", 1e6, seconds=5)
    findings = await run(hangs, check("needs", needs=(hangs,)), check("other", 1))
    assert [one.verdict for one in findings] == [Verdict.WARNING, Verdict.SKIPPED, Verdict.OK]
    assert "within 5 s" in findings[0].seen
    assert not has_problem(findings)


async def test_all_of_it_has_an_end(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    findings = await run(check("slow", 1e6, seconds=1e6), check("quick", 1))
    assert trio.current_time() - started == TOTAL_SECONDS
    assert [one.verdict for one in findings] == [Verdict.WARNING, Verdict.OK]
    assert "20 s in all" in findings[0].seen


async def test_a_bug_in_one_check_is_one_finding() -> None:
    async def crash(_case: Case) -> str:
        raise ZeroDivisionError

    buggy = Check("buggy", Layer.STATE, crash, lambda _seen: [])
    findings = await run(buggy, check("other"))
    assert [one.verdict for one in findings] == [Verdict.WARNING, Verdict.OK]
    assert "ZeroDivisionError" in findings[0].seen


def test_every_check_is_told_once_and_has_what_it_waits_for() -> None:
    names = [one.name for one in CHECKS]
    assert len(set(names)) == len(names)
    assert {other.name for one in CHECKS for other in (*one.needs, *one.follows)} <= set(names)


def test_the_longest_way_through_fits_into_the_time() -> None:
    """Else the last check of a mesh whose relay is filtered would never have a result."""
    ends: dict[str, float] = {}

    def end_of(one: Check) -> float:
        if one.name not in ends:
            before = [end_of(other) for other in (*one.needs, *one.follows)]
            own = 0.1 if one.name in QUICK else one.seconds
            ends[one.name] = max(before, default=0.0) + own
        return ends[one.name]

    assert max(end_of(one) for one in CHECKS) <= TOTAL_SECONDS, ends


QUICK = {
    "version",
    "config",
    "files",
    "identity",
    "secret",
    "listen",
    "http",
    "nat",
    "disk",
    "state",
    "keys",
}
"""They ask this machine only, and wait for nobody."""
