"""The ledger on disk: what was used is there after a restart, a crash and a damaged file."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
import trio

from aimo_node.assembly.usage_keeping import USAGE_FILE, WRITE_SECONDS, UsageKeeper
from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.quota import DAY_SECONDS, Quota, Spent
from aimo_node.dispatch.usage import HOUR_SECONDS, UsageRow
from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.errors import ConfigError, RateLimitExceeded
from aimo_node.store import usage as usage_module
from aimo_node.store.usage import KEPT_DAYS, VERSION, UsageStore, UsageStoreError

OWN, GREEDY, MODEST = PeerId("own"), PeerId("greedy"), PeerId("modest")
TINY, LARGE = ModelName("tiny"), ModelName("large")
MIDNIGHT = 20_000.0 * DAY_SECONDS


def used(peer: PeerId, model: ModelName, moment: float, requests: int = 1) -> tuple[int, UsageRow]:
    row = UsageRow(peer, model, requests, 10 * requests, 100 * requests, moment, moment)
    return int(moment // HOUR_SECONDS), row


def test_rows_add_up_by_peer_and_model(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "ledger")
    for moment in (MIDNIGHT, MIDNIGHT + 60, MIDNIGHT + 7200):
        store.add([used(GREEDY, TINY, moment), used(MODEST, LARGE, moment - 3600)])
    store.add([used(GREEDY, LARGE, MIDNIGHT + 1)])
    assert store.since(0) == [
        UsageRow(GREEDY, TINY, 3, 30, 300, MIDNIGHT, MIDNIGHT + 7200),
        UsageRow(MODEST, LARGE, 3, 30, 300, MIDNIGHT - 3600, MIDNIGHT + 3600),
        UsageRow(GREEDY, LARGE, 1, 10, 100, MIDNIGHT + 1, MIDNIGHT + 1),
    ]
    later = store.since(MIDNIGHT + 7200 + 30)
    assert [(row.peer, row.requests) for row in later] == [(GREEDY, 1)], "to the hour"


def test_today_is_a_day_of_utc(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "ledger")
    moments = (MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + DAY_SECONDS - 1, MIDNIGHT + DAY_SECONDS)
    store.add([used(GREEDY, TINY, moment) for moment in moments])
    store.add([used(GREEDY, LARGE, MIDNIGHT)])
    assert store.spent_today(MIDNIGHT + 5) == {GREEDY: Spent(3, 330)}


def test_what_is_committed_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    """The file as another process finds it, while the first has not closed it."""
    store = UsageStore(tmp_path / "ledger")
    store.add([used(GREEDY, TINY, MIDNIGHT)])
    again = UsageStore(tmp_path / "ledger")
    assert [row.requests for row in again.since(0)] == [1]


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "ledger")
    hour, bad = used(GREEDY, TINY, MIDNIGHT)
    bad.requests = None  # type: ignore[assignment]
    with pytest.raises(UsageStoreError):
        store.add([used(MODEST, TINY, MIDNIGHT), (hour, bad)])
    assert store.since(0) == []


def test_old_rows_and_too_many_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UsageStore(tmp_path / "ledger")
    now = MIDNIGHT + 200 * DAY_SECONDS
    edge = now - KEPT_DAYS * DAY_SECONDS
    store.add([used(GREEDY, TINY, edge - HOUR_SECONDS), used(MODEST, TINY, edge)])
    store.prune(now)
    assert [row.peer for row in store.since(0)] == [MODEST]
    store.add([used(PeerId(f"p{hour}"), TINY, now + hour * HOUR_SECONDS) for hour in range(9)])
    monkeypatch.setattr(usage_module, "ROWS_MAX", 4)
    store.prune(now)
    assert [row.peer for row in store.since(0)] == ["p8", "p7", "p6", "p5"]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "ledger")
    store.add([used(GREEDY, TINY, MIDNIGHT)])
    files = list(tmp_path.iterdir())
    assert len(files) >= 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    file.write_bytes(b"this is not a database, " * 100)
    store = UsageStore(file)
    store.add([used(GREEDY, TINY, MIDNIGHT)])
    assert len(store.since(0)) == 1
    assert (tmp_path / "ledger.damaged").read_bytes().startswith(b"this is not")


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="later version"):
        UsageStore(file)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        UsageStore(tmp_path / "missing" / "ledger")


class Clock:
    """Seconds since the epoch, set by the test."""

    now = MIDNIGHT + 100

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, requests: int = 0) -> Meter:
    return Meter(OWN, Quota(requests_per_day=requests), clock)


async def test_counts_and_quota_are_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    first = meter(clock, requests=2)
    keeper = UsageKeeper(tmp_path, first)
    assert not (tmp_path / USAGE_FILE).exists(), "nobody used it yet"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        for _ in range(2):
            first.open(GREEDY).settle(TINY, Usage(7, 11))
        rows = await keeper.since(MIDNIGHT)
        assert [(row.peer, row.requests, row.prompt_tokens) for row in rows] == [(GREEDY, 2, 14)]
        first.open(MODEST).settle(TINY, Usage(1, 1))
        nursery.cancel_scope.cancel()

    second = meter(clock, requests=2)
    again = UsageKeeper(tmp_path, second)
    with pytest.raises(RateLimitExceeded):
        second.open(GREEDY)
    second.open(MODEST).close()
    rows = await again.since(MIDNIGHT)
    assert {(row.peer, row.completion_tokens) for row in rows} == {(GREEDY, 22), (MODEST, 1)}

    clock.now += DAY_SECONDS
    third = meter(clock, requests=2)
    UsageKeeper(tmp_path, third)
    third.open(GREEDY)


async def test_it_is_written_by_itself_and_again_after_somebody_has_asked(tmp_path: Path) -> None:
    made = meter(Clock())
    keeper = UsageKeeper(tmp_path, made)

    async def until_written(requests: int) -> None:
        with trio.fail_after(10 * WRITE_SECONDS):
            while True:
                reader = UsageStore(tmp_path / USAGE_FILE)
                found = sum(row.requests for row in reader.since(0))
                reader.close()
                if found == requests:
                    return
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await keeper.since(0) == []
        for requests in (1, 2):
            made.open(GREEDY).settle(TINY, Usage(1, 1))
            await until_written(requests)
        made.open(GREEDY).settle(TINY, Usage(1, 1))
        assert [row.requests for row in await keeper.since(0)] == [3]
        made.open(GREEDY).settle(TINY, Usage(1, 1))
        await until_written(4)
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_written_is_kept_and_written_later(tmp_path: Path) -> None:
    clock = Clock()
    made = meter(clock)
    keeper = UsageKeeper(tmp_path, made)
    (tmp_path / USAGE_FILE).mkdir()
    made.open(GREEDY).settle(TINY, Usage(1, 2))
    with pytest.raises(ConfigError):
        await keeper.since(0)
    assert len(made.book) == 1
    (tmp_path / USAGE_FILE).rmdir()
    (row,) = await keeper.since(0)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 1, 2)
