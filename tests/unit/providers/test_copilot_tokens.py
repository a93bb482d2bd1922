"""Keeping a token fresh: before it expires, after a sleep, on demand, and when GitHub is away.

Time is virtual: nothing here does I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aimo_node.errors import EngineFailed
from providers.copilot.refusal import CopilotError
from providers.copilot.tokens import (
    BACK_OFF_SECONDS_MAX,
    LOOK_SECONDS,
    CopilotToken,
    HeldToken,
    Moment,
    TokenKeeper,
    read_token,
)

ROOT = "https://api.githubcopilot.com"
EPOCH = 1_800_000_000.0


class Machine:
    """A source of tokens, and two clocks of which one can be moved.

    Attributes:
        asleep_seconds: how far the wall clock is ahead of the steady one.
        failures: raised by the next fetches.
        hold: a fetch waits until it is set.
    """

    def __init__(self) -> None:
        self.asleep_seconds = 0.0
        self.fetches: list[float] = []
        self.failures: deque[CopilotError] = deque()
        self.hold = trio.Event()
        self.hold.set()
        self.life_seconds = 1800.0
        self.keeper = TokenKeeper(self.fetch, clocks=self.clocks, jitter=lambda: 0.0)

    def clocks(self) -> Moment:
        steady = trio.current_time()
        return Moment(EPOCH + steady + self.asleep_seconds, steady)

    async def fetch(self) -> CopilotToken:
        self.fetches.append(trio.current_time())
        await self.hold.wait()
        if self.failures:
            raise self.failures.popleft()
        expires_at = self.clocks().wall + self.life_seconds
        return CopilotToken(f"secret{len(self.fetches)}", ROOT, 1500, expires_at)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TokenKeeper]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keeper.run)
            yield self.keeper
            nursery.cancel_scope.cancel()


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_a_token_is_replaced_before_it_expires(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        first = await keeper.token()
        await trio.sleep(1400)
        assert await keeper.token() is first
        await trio.sleep(100)
        assert await keeper.token() is not first
        assert len(machine.fetches) == 2, "in the background: nobody asked at the time"
        assert machine.fetches[1] - machine.fetches[0] == pytest.approx(1440, abs=1)


async def test_after_a_sleep_of_the_machine_a_request_gets_a_new_token(
    autojump_clock: object, machine: Machine
) -> None:
    """The steady clock stands still meanwhile; only the wall clock tells."""
    async with machine.running() as keeper:
        first = await keeper.token()
        machine.asleep_seconds = 1450.0  # due, not yet expired
        second = await keeper.token()
        assert second is not first
        machine.asleep_seconds += 8 * 3600.0
        assert await keeper.token() is not second
        assert trio.current_time() - machine.fetches[0] < 1, "no timer had to pass"


async def test_after_a_sleep_the_timer_notices_by_itself(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        await keeper.token()
        machine.asleep_seconds = 8 * 3600.0
        await trio.sleep(LOOK_SECONDS + 1)
        assert len(machine.fetches) == 2


async def test_a_clock_set_back_does_not_prolong_a_token(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        first = await keeper.token()
        machine.asleep_seconds = -7200.0
        await trio.sleep(1500)
        assert await keeper.token() is not first


@pytest.mark.parametrize("wrong_by", [-86_400.0 * 300, 86_400.0, 1800.0])
async def test_a_clock_that_is_wrong_makes_no_storm(
    autojump_clock: object, machine: Machine, wrong_by: float
) -> None:
    """GitHub's absolute time then says nothing; its time from now does."""
    machine.life_seconds = wrong_by - 1.0 if wrong_by < 0 else -wrong_by
    async with machine.running() as keeper:
        first = await keeper.token()
        await trio.sleep(1000)
        assert await keeper.token() is first
        await trio.sleep(1000)
        assert len(machine.fetches) == 2


async def test_many_who_need_a_token_make_one_fetch(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        await keeper.token()
        machine.asleep_seconds = 8 * 3600.0
        machine.hold = trio.Event()
        found: list[CopilotToken] = []

        async def ask() -> None:
            found.append(await keeper.token())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            machine.hold.set()
        await trio.sleep(1)
        assert len(machine.fetches) == 2
        assert len({id(token) for token in found}) == 1


async def test_one_who_leaves_does_not_take_the_fetch_along(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        machine.hold = trio.Event()
        with trio.move_on_after(1):
            await keeper.token()
        machine.hold.set()
        assert (await keeper.token()).value == "secret1"
        assert len(machine.fetches) == 1


async def test_a_rejected_token_is_replaced_once_for_all_who_had_it(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        old = await keeper.token()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(keeper.replacement, old)
        new = await keeper.replacement(old)
        assert new is not old
        assert len(machine.fetches) == 2


async def test_failures_are_tried_again_with_growing_pauses_and_for_ever(
    autojump_clock: object,
    machine: Machine,
) -> None:
    async with machine.running() as keeper:
        first = await keeper.token()
        machine.failures.extend(CopilotError("GitHub is away") for _ in range(12))
        await trio.sleep(1450)
        assert keeper.failure is not None
        assert keeper.usable
        assert await keeper.token() is first, "good for as long as it lives"
        await trio.sleep(360)
        assert not keeper.usable
        with pytest.raises(EngineFailed, match="GitHub is away"):
            await keeper.token()
        await trio.sleep(60)
        assert keeper.failure is None
        assert await keeper.token() is not first
    pauses = [b - a for a, b in zip(machine.fetches[1:], machine.fetches[2:], strict=False)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32] + [60] * 6)


async def test_requests_do_not_hurry_a_fetch_that_has_just_failed(
    autojump_clock: object, machine: Machine
) -> None:
    machine.failures.extend(CopilotError("GitHub is away") for _ in range(3))
    async with machine.running() as keeper:
        for _ in range(100):
            with pytest.raises(EngineFailed, match="GitHub is away"):
                await keeper.token()
        assert len(machine.fetches) == 1
        await trio.sleep(8)
        assert (await keeper.token()).value == "secret4"


async def test_a_refusal_for_good_is_asked_again_once_a_minute(
    autojump_clock: object, machine: Machine
) -> None:
    """The owner may log in again while the node runs."""
    machine.failures.append(CopilotError("log in again", final=True))
    async with machine.running() as keeper:
        assert await keeper.first() is None
        await trio.sleep(BACK_OFF_SECONDS_MAX - 1)
        assert len(machine.fetches) == 1
        await trio.sleep(2)
        assert keeper.usable


async def test_a_service_that_takes_no_token_at_all_is_not_flooded(
    autojump_clock: object, machine: Machine
) -> None:
    async with machine.running() as keeper:
        for _ in range(600):
            try:
                rejected = await keeper.token()
                fresh = await keeper.replacement(rejected)
            except EngineFailed:
                pass
            else:
                keeper.distrust(fresh)
            await trio.sleep(1)
        assert len(machine.fetches) < 45, "ten minutes of a request a second"
        await trio.sleep(60)
        await keeper.token()
        keeper.trust()
        keeper.distrust(await keeper.token())
        before = len(machine.fetches)
        await trio.sleep(1.1)
        assert len(machine.fetches) == before + 1, "after a success the pauses begin anew"


@pytest.mark.parametrize(
    ("refresh", "expires_in", "jitter", "due", "life"),
    [
        (1500, 1800, 0.0, 1440, 1800),
        (1500, 1800, 1.0, 1365, 1800),
        (1500, 600, 0.0, 540, 600),
        (100, 1800, 0.0, 80, 1800),
        (1, 2, 0.0, 5, 5),
        (1500, -50, 0.0, 1440, 1560),
        (1500, 10_000_000, 0.0, 1440, 1560),
    ],
)
def test_when_a_token_is_due(
    refresh: float, expires_in: float, jitter: float, due: float, life: float
) -> None:
    now = Moment(EPOCH, 5.0)
    held = HeldToken(CopilotToken("t", ROOT, refresh, EPOCH + expires_in), now, jitter)
    assert (held.due_seconds, held.life_seconds) == (due, life)


@pytest.mark.parametrize("value", [None, "", 7, "two\nlines", "é"])
def test_an_answer_without_a_token_is_an_error(value: object) -> None:
    with pytest.raises(CopilotError, match="no token"):
        read_token({"token": value}, ROOT)


def test_odd_numbers_in_the_answer_are_replaced_by_usual_ones() -> None:
    token = read_token({"token": "secret", "refresh_in": "soon", "expires_at": True}, ROOT)
    assert (token.refresh_seconds, token.expires_at) == (900, 0)
    assert "secret" not in repr(token)
