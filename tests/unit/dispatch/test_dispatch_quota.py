"""What a peer may use in a day: when it is over, when the next one begins, what is remembered."""

from __future__ import annotations

import pytest

from aimo_node.dispatch.quota import DAY_SECONDS, OTHERS, PEERS_MAX, DayQuotas, Quota, Spent
from aimo_node.domain.ids import PeerId
from aimo_node.errors import RateLimitExceeded

OWN, GREEDY, MODEST = PeerId("own"), PeerId("greedy"), PeerId("modest")
MIDNIGHT = 20_000 * DAY_SECONDS
NOON = MIDNIGHT + DAY_SECONDS / 2


def quotas(requests: int = 0, tokens: int = 0) -> DayQuotas:
    return DayQuotas(Quota(requests, tokens), OWN)


def refused(made: DayQuotas, peer: PeerId, now: float) -> RateLimitExceeded:
    with pytest.raises(RateLimitExceeded) as caught:
        made.take(peer, now)
    return caught.value


def test_a_peer_gets_so_many_requests_and_then_waits_for_midnight() -> None:
    made = quotas(requests=3)
    for _ in range(3):
        made.take(GREEDY, NOON)
    error = refused(made, GREEDY, NOON + 1)
    assert error.retry_after_seconds == DAY_SECONDS / 2 - 1
    assert "3 requests a day" in error.message
    assert "0:00 UTC" in error.message
    made.take(MODEST, NOON)
    assert refused(made, GREEDY, MIDNIGHT + DAY_SECONDS - 0.5).retry_after_seconds == 0.5
    made.take(GREEDY, MIDNIGHT + DAY_SECONDS)
    assert made.refused_total == 2


def test_tokens_that_are_used_up_refuse_the_next_request() -> None:
    made = quotas(tokens=100)
    made.take(GREEDY, NOON)
    made.spend(GREEDY, 99, NOON)
    made.take(GREEDY, NOON)
    made.spend(GREEDY, 1, NOON)
    assert "100 tokens a day" in refused(made, GREEDY, NOON).message
    made.take(MODEST, NOON)


def test_the_owner_has_no_quota() -> None:
    made = quotas(requests=1, tokens=1)
    for _ in range(5):
        made.take(OWN, NOON)
        made.spend(OWN, 1_000, NOON)


def test_without_a_quota_nobody_is_refused() -> None:
    made = quotas()
    for _ in range(5):
        made.take(GREEDY, NOON)
        made.spend(GREEDY, 1_000_000, NOON)


def test_a_restart_begins_where_it_ended() -> None:
    made = quotas(requests=3, tokens=100)
    made.restore({GREEDY: Spent(3, 10), MODEST: Spent(1, 100), OWN: Spent(9, 9_000)}, NOON)
    assert "requests" in refused(made, GREEDY, NOON).message
    assert "tokens" in refused(made, MODEST, NOON).message
    made.take(OWN, NOON)


def test_a_clock_set_back_across_midnight_is_no_new_day() -> None:
    made = quotas(requests=1)
    made.take(GREEDY, MIDNIGHT)
    assert refused(made, GREEDY, MIDNIGHT - 5).retry_after_seconds == DAY_SECONDS + 5
    made.take(GREEDY, MIDNIGHT - 400 * DAY_SECONDS)  # it had been wrong: no day lasts for a year


def test_fresh_identities_neither_fill_the_memory_nor_get_past_it() -> None:
    made = quotas(requests=2)
    for number in range(PEERS_MAX):
        made.take(PeerId(f"p{number}"), NOON)
    made.take(PeerId("late"), NOON)
    made.take(PeerId("later"), NOON)
    refused(made, PeerId("latest"), NOON)
    assert made.spend(PeerId("latest"), 1, NOON) == OTHERS
    made.take(PeerId("p1"), NOON)
    assert len(made._spent) == PEERS_MAX + 1
    assert OTHERS in made._spent
