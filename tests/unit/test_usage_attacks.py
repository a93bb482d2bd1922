"""What a consumer, a broken disk or an odd hour could do to the ledger and the quotas."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from aimo_node.assembly.usage_keeping import USAGE_FILE, UsageKeeper
from aimo_node.dispatch.metering import TOKENS_MAX, Meter
from aimo_node.dispatch.quota import DAY_SECONDS, OTHERS, PEERS_MAX, Quota
from aimo_node.dispatch.usage import HOUR_SECONDS, UsageRow
from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.errors import ConfigError, RateLimitExceeded
from aimo_node.store.usage import UsageStore

OWN, GREEDY = PeerId("own"), PeerId("greedy")
TINY = ModelName("tiny")
MIDNIGHT = 20_000.0 * DAY_SECONDS


class Clock:
    """Seconds since the epoch, set by the test."""

    now = MIDNIGHT + 100

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, requests: int = 0) -> Meter:
    return Meter(OWN, Quota(requests_per_day=requests), clock)


def test_fresh_identities_do_not_fill_the_ledger() -> None:
    """Else who asks under ever new ids pushes the others' rows out of it."""
    made = meter(Clock())
    for number in range(PEERS_MAX + 50):
        made.open(PeerId(f"p{number}")).settle(TINY, Usage(1, 1))
    made.open(OWN).settle(TINY, Usage(1, 1))
    rows = {row.peer: row.requests for _, row in made.book.take()}
    assert len(rows) == PEERS_MAX + 2
    assert rows[OTHERS] == 50
    assert rows[OWN] == 1


def test_identities_that_used_nothing_take_no_account_from_others() -> None:
    """Else requests for a model that is not there, which cost nothing, would push every newcomer
    into the account of all, and one peer could use that up for the day."""
    made = meter(Clock(), requests=1)
    for number in range(PEERS_MAX):
        made.open(PeerId(f"p{number}")).close()
    for number in range(2):
        with contextlib.suppress(RateLimitExceeded):
            made.open(PeerId(f"greedy{number}")).settle(TINY, Usage(1, 1))
    made.open(PeerId("honest")).settle(TINY, Usage(1, 1))


def test_what_comes_to_nothing_after_midnight_is_not_taken_off_the_new_day() -> None:
    """Else a peer would get a request more for each that it lets fail after midnight."""
    clock = Clock()
    made = meter(clock, requests=1)
    clock.now = MIDNIGHT - 1
    yesterday = made.open(GREEDY)
    clock.now = MIDNIGHT + 1
    made.open(GREEDY).settle(TINY, Usage(1, 1))
    yesterday.close()
    with pytest.raises(RateLimitExceeded):
        made.open(GREEDY)


def test_a_request_that_came_to_nothing_is_given_back() -> None:
    made = meter(Clock(), requests=1)
    made.open(GREEDY).close()
    made.open(OWN).close()
    made.open(GREEDY)
    with pytest.raises(RateLimitExceeded):
        made.open(GREEDY)


@pytest.mark.parametrize(
    ("said", "counted"), [(1 << 70, TOKENS_MAX), (10**400, TOKENS_MAX), (-1_000, 0)]
)
async def test_a_count_that_no_engine_can_mean_is_pulled_into_bounds(
    tmp_path: Path, said: int, counted: int
) -> None:
    """An upstream says what it likes: a number too large for the ledger would end the node, one
    below zero would give a peer tokens."""
    made = meter(Clock())
    keeper = UsageKeeper(tmp_path, made)
    bill = made.open(GREEDY)
    bill.settle(TINY, Usage(said, said))
    bill.add_prompt(said)
    (row,) = await keeper.since(0)
    assert (row.prompt_tokens, row.completion_tokens) == (2 * counted, counted)
    assert made.quotas._spent[GREEDY].tokens == 3 * counted


def damaged_ledger(path: Path) -> None:
    """One whose head is whole and whose rows are not."""
    store = UsageStore(path)
    rows = [
        (
            int(MIDNIGHT // HOUR_SECONDS),
            UsageRow(PeerId(f"p{n}"), TINY, 1, 1, 1, MIDNIGHT, MIDNIGHT),
        )
        for n in range(2_000)
    ]
    store.add(rows)
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


async def test_a_ledger_whose_rows_are_damaged_is_set_aside_as_well(tmp_path: Path) -> None:
    """Else nothing would ever be counted again, and each restart would give everybody a new day."""
    path = tmp_path / USAGE_FILE
    damaged_ledger(path)
    clock = Clock()
    made = meter(clock, requests=1)
    keeper = UsageKeeper(tmp_path, made)
    made.open(GREEDY).settle(TINY, Usage(1, 1))
    assert [row.peer for row in await keeper.since(0)] == [GREEDY]
    assert (tmp_path / f"{USAGE_FILE}.damaged").exists()


async def test_a_damaged_ledger_that_cannot_be_set_aside_is_named(tmp_path: Path) -> None:
    path = tmp_path / USAGE_FILE
    path.write_bytes(b"this is not a database, " * 100)
    (tmp_path / f"{USAGE_FILE}.damaged").mkdir()
    with pytest.raises(ConfigError, match="damaged"):
        UsageKeeper(tmp_path, meter(Clock()))
