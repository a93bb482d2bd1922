"""Check of the clock, against whoever tells the time without being asked for it.

The wire carries no time on a link. What can be seen: what the authority of a mesh answers, the Date
of an upstream's HTTP answer, when a relay signed its addresses (its clock cannot be behind that),
files from the future, and whether the kernel says that something keeps its clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import trio

from aimo_node.assembly.doctor.admission import MEMBERSHIP
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.folder import STATE
from aimo_node.assembly.doctor.program import CONFIGURATION
from aimo_node.errors import ConfigError, EngineFailed

SKEW_SECONDS_MAX: Final = 30.0
"""What a mesh tolerates between two nodes."""
DATE_SECONDS: Final = 2.0
FILES_MAX: Final = 200
_NTP: Final = "let NTP keep the clock: timedatectl set-ntp true, or install chrony"


@dataclass(frozen=True, slots=True)
class Clocks:
    """This machine's clock and others'.

    Attributes:
        offsets: by how many seconds each other clock is ahead; negative: behind.
        ahead_at_least: by how much a relay's clock is ahead of this one, at least.
        file_ahead: by how much the newest file of the node is.
        is_kept: whether the kernel says that something keeps its clock; None if it is silent.
    """

    offsets: dict[str, float] = field(default_factory=dict)
    ahead_at_least: dict[str, float] = field(default_factory=dict)
    file_ahead: float = 0.0
    is_kept: bool | None = None


async def _compare(case: Case) -> Clocks:
    settings = case.seen(CONFIGURATION).usable
    met = case.glimpse(MEMBERSHIP)
    meetings = met.meetings if met is not None else ()
    offsets: dict[str, float] = {
        f"the authority (asked at {one.peer})"
        if one.word.has_authority
        else f"relay {one.peer}": one.word.ahead_seconds
        for one in meetings
        if one.word is not None
    }
    async with trio.open_nursery() as nursery:

        async def ask(endpoint: str) -> None:
            date = await _date_at(endpoint)
            if date is not None:
                offsets[endpoint] = date - case.machine.now()

        for section in settings.provider.engines:
            if section.endpoint.startswith(("http://", "https://")):
                nursery.start_soon(ask, section.endpoint)
    now = case.machine.now()
    signed: dict[str, float] = {
        meeting.peer: meeting.sighting.signed_at - now
        for meeting in meetings
        if meeting.sighting is not None and meeting.sighting.signed_at is not None
    }
    newest = max(_times_in(settings.node.state), default=now)
    return Clocks(offsets, signed, newest - now, case.machine.clock_is_kept())


async def _date_at(endpoint: str) -> float | None:
    """The time in the head of an HTTP answer, whatever the answer is."""
    from providers.upstreams.endpoints import split_endpoint  # noqa: PLC0415 (only with an upstream)
    from providers.upstreams.settings import connect_to  # noqa: PLC0415

    with trio.move_on_after(DATE_SECONDS), contextlib.suppress(ConfigError, EngineFailed):
        upstream = connect_to(split_endpoint(endpoint)[0], requests_max=1, ca_file=None)
        try:
            async with upstream.request("GET", "/") as reply:
                date = reply.headers.get("date", "")
            with contextlib.suppress(ValueError, TypeError):
                return parsedate_to_datetime(date).timestamp()
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await upstream.aclose()
    return None


def _times_in(folder: Path) -> Iterator[float]:
    """When the files directly in the state folder were written."""
    with contextlib.suppress(OSError):
        for number, path in enumerate(folder.iterdir()):
            if number >= FILES_MAX:
                return
            yield path.stat().st_mtime


def judge_clocks(seen: Clocks) -> list[Finding]:
    """More than half a minute is too much; where nobody tells the time, that is said."""
    return [_find_skew(seen) or _say_how_well(seen)]


def _find_skew(seen: Clocks) -> Finding | None:
    for who, off in seen.offsets.items():
        if abs(off) > SKEW_SECONDS_MAX:
            said = f"{abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} what {who} says"
            return problem(Layer.CLOCK, said, _NTP)
    for who, off in seen.ahead_at_least.items():
        if off > SKEW_SECONDS_MAX:
            said = f"at least {off:.0f} s behind that of relay {who}, or the relay's is ahead"
            return problem(Layer.CLOCK, said, f"{_NTP}; on both machines")
    if seen.file_ahead > SKEW_SECONDS_MAX:
        said = f"set back: a file of the node is from {seen.file_ahead:.0f} s in the future"
        return warning(Layer.CLOCK, said, _NTP)
    return None


def _say_how_well(seen: Clocks) -> Finding:
    if seen.offsets:
        who, off = next(iter(seen.offsets.items()))
        return ok(Layer.CLOCK, f"{abs(off):.0f} s off what {who} says")
    if seen.is_kept is False:
        said = "nobody tells the time to compare with, and the kernel says that nothing keeps it"
        return warning(Layer.CLOCK, said, _NTP)
    if seen.is_kept:
        return ok(Layer.CLOCK, "something keeps it in time, the kernel says")
    return ok(Layer.CLOCK, "not behind any relay; nobody tells the exact time")


CLOCK: Final = Check(
    "clock",
    Layer.CLOCK,
    _compare,
    judge_clocks,
    needs=(CONFIGURATION,),
    follows=(MEMBERSHIP, STATE),
    seconds=DATE_SECONDS + 0.5,
)
