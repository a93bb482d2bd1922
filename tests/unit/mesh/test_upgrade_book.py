"""When rounds begin: at once, then less and less often, and never as often as a peer likes."""

import math

import pytest

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.circuits import upgrade
from aimo_node.mesh.circuits.upgrade import (
    PAUSES_SECONDS,
    ROUNDS_AT_ONCE,
    ROUNDS_PER_SECOND,
    START_SECONDS,
    TRIES_MAX,
    UpgradeBook,
)

PEER, OTHER = PeerId("peer"), PeerId("other")


def on_circuit(*, accepted: bool = True) -> UpgradeBook:
    book = UpgradeBook()
    book.circuit_opened(PEER, 0.0, accepted=accepted)
    return book


def test_who_accepted_the_circuit_begins_soon_and_once():
    book = on_circuit()
    assert book.begin(0.0) == []
    assert book.next_at() == START_SECONDS
    assert book.begin(START_SECONDS) == [PEER]
    assert book.is_running(PEER)
    assert book.begin(1.0) == []
    assert book.next_at() == math.inf


def test_who_made_the_circuit_waits_for_the_other():
    book = on_circuit(accepted=False)
    assert book.next_at() == math.inf
    assert book.begin(3600.0) == []


def test_failures_make_the_pauses_longer_up_to_half_an_hour():
    book = on_circuit()
    now = START_SECONDS
    for pause in (*PAUSES_SECONDS, PAUSES_SECONDS[-1]):
        assert book.begin(now) == [PEER]
        book.failed(PEER, now)
        assert book.next_at() == now + pause
        assert book.begin(now + pause - 0.1) == []
        now += pause


def test_a_direct_link_ends_it():
    book = on_circuit()
    book.begin(1.0)
    book.left(PEER)
    book.succeeded(PEER)
    assert book.next_at() == math.inf


@pytest.mark.parametrize("accepted", [True, False])
def test_other_networks_are_a_new_chance_whoever_made_the_circuit(accepted):
    book = on_circuit(accepted=accepted)
    book.begin(1.0)
    if accepted:
        book.failed(PEER, 1.0)
        assert book.begin(2.0) == []
    book.retry_now(2.0)
    assert book.begin(2.0) == [PEER]
    book.failed(PEER, 2.0)
    assert book.next_at() == (2.0 + PAUSES_SECONDS[0] if accepted else math.inf)


def test_who_is_not_on_a_circuit_any_more_is_not_looked_for():
    book = on_circuit()
    book.left(PEER)
    book.retry_now(2.0)
    assert book.begin(3.0) == []


def test_circuits_that_come_and_go_do_not_cause_more_rounds_than_the_peer_may():
    """Each round is eight addresses of the peer's choice."""
    book = UpgradeBook()
    begun = 0
    for second in range(600):
        book.circuit_opened(PEER, float(second), accepted=True)
        for _ in book.begin(second + START_SECONDS):
            begun += 1
            book.succeeded(PEER)  # even one that is met in the end
        book.left(PEER)
    assert begun <= ROUNDS_AT_ONCE + 600 * ROUNDS_PER_SECOND + 1


def test_a_peer_cannot_ask_for_more_rounds_than_it_may():
    book = on_circuit(accepted=False)
    answered = sum(book.may_answer(PEER, float(second)) for second in range(600))
    assert ROUNDS_AT_ONCE <= answered <= ROUNDS_AT_ONCE + 600 * ROUNDS_PER_SECOND + 1


def test_when_both_begin_the_round_of_who_accepted_goes_on():
    near, far = on_circuit(accepted=True), on_circuit(accepted=False)
    near.begin(1.0)
    far.retry_now(1.0)
    far.begin(1.0)
    assert not near.may_answer(PEER, 1.0)
    assert far.may_answer(PEER, 1.0)


def test_who_is_not_on_a_circuit_is_not_answered():
    book = on_circuit()
    book.left(PEER)
    assert not book.may_answer(PEER, 1.0)
    assert not book.may_answer(OTHER, 1.0)


def test_only_so_many_rounds_run_at_a_time():
    book = UpgradeBook()
    for number in range(TRIES_MAX + 3):
        book.circuit_opened(PeerId(f"peer{number}"), 0.0, accepted=True)
    first = book.begin(1.0)
    assert len(first) == TRIES_MAX
    assert book.next_at() == math.inf
    book.failed(first[0], 1.0)
    assert len(book.begin(1.0)) == 1


def test_peers_that_have_gone_are_forgotten_when_there_are_many(monkeypatch):
    monkeypatch.setattr(upgrade, "PEERS_MAX", 2)
    book = UpgradeBook()
    for number in range(50):
        book.circuit_opened(PeerId(f"peer{number}"), 0.0, accepted=True)
        book.left(PeerId(f"peer{number}"))
    assert len(book._peers) == 2
