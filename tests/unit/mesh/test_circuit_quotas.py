"""What members of a relay may cost it, counted without a network."""

import pytest

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.circuits import quotas
from aimo_node.mesh.circuits.quotas import RESERVATION_SECONDS, CircuitBook, CircuitLimits, Rate

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_a_reservation_ends_unless_it_is_renewed():
    book = CircuitBook(CircuitLimits())
    assert not book.has_reservation(A, 0)
    assert book.reserve(A, 0)
    assert book.has_reservation(A, RESERVATION_SECONDS - 1)
    assert not book.has_reservation(A, RESERVATION_SECONDS)
    assert book.reserve(A, RESERVATION_SECONDS - 1)
    assert book.has_reservation(A, RESERVATION_SECONDS + 1)
    book.withdraw(A)
    assert not book.has_reservation(A, RESERVATION_SECONDS + 1)


def test_reservations_are_limited_and_expired_ones_make_room():
    book = CircuitBook(CircuitLimits(reservations_max=2))
    assert book.reserve(A, 0)
    assert book.reserve(B, 1)
    assert not book.reserve(C, 2)
    assert book.reserve(A, 3), "who has one may renew it"
    assert book.reserve(C, RESERVATION_SECONDS + 2)
    assert book.reservations == 2


def test_circuits_are_limited_for_each_member_and_in_all():
    book = CircuitBook(CircuitLimits(circuits_per_member_max=2, circuits_max=3))
    book.open(A, B, now=0)
    book.open(A, C, now=0)
    assert not book.has_room(A, C)
    assert not book.has_room(C, A)
    assert book.has_room(B, C)
    book.open(B, C, now=0)
    assert not book.has_room(PeerId("d"), PeerId("e"))
    book.close(A, B)
    assert book.has_room(A, PeerId("d"))
    book.close(A, C)
    book.close(B, C)
    assert book.running == 0
    assert not book._pairs
    assert not any(account.circuits for account in book._accounts.values())


def test_one_member_cannot_fill_the_places_of_another():
    book = CircuitBook(CircuitLimits(circuits_per_pair_max=2))
    book.open(A, B, now=0)
    book.open(A, B, now=0)
    assert not book.has_room(A, B)
    assert book.has_room(C, B)
    assert book.has_room(A, C)
    book.close(A, B)
    assert book.has_room(A, B)


def test_who_asks_too_often_is_refused_and_costs_its_peer_nothing():
    limits = CircuitLimits(openings_at_once=2, asked_per_second=1, offered_per_second=10)
    book = CircuitBook(limits)
    assert [book.take_opening(A, B, 0) for _ in range(5)] == [True, True, False, False, False]
    assert not book.take_opening(C, B, 0), "two were offered to B already"
    assert book.take_opening(C, B, 0.1)
    assert not book.take_opening(A, B, 0.9)
    assert book.take_opening(A, B, 1.0)


def test_a_new_circuit_brings_no_new_rate():
    """A member could else carry a second's worth with each, and open another."""
    book = CircuitBook(CircuitLimits(member_bytes_per_second=1000))
    book.open(A, B, now=0)[0].spend(3000, 0)
    book.close(A, B)
    book.withdraw(A)
    assert book.open(A, B, now=0)[0].spend(0, 0) == pytest.approx(2.0)


def test_accounts_are_limited_and_those_of_running_circuits_stay(monkeypatch):
    monkeypatch.setattr(quotas, "ACCOUNTS_MAX", 4)
    book = CircuitBook(CircuitLimits())
    book.open(A, B, now=0)
    for number in range(10):
        book.take_opening(PeerId(f"passing{number}"), B, 0)
    assert len(book._accounts) == 4
    book.close(A, B)
    assert book.running == 0


def test_all_circuits_of_a_member_share_its_rate():
    book = CircuitBook(CircuitLimits(member_bytes_per_second=1000))
    first = book.open(A, B, now=0)
    second = book.open(A, C, now=0)
    assert first[0] is second[0]
    assert first[1] is not second[1]


def test_a_rate_lets_a_second_of_bytes_through_and_then_makes_wait():
    rate = Rate(1000.0, 0)
    assert rate.spend(1000, 0) == 0
    assert rate.spend(500, 0) == pytest.approx(0.5)
    assert rate.spend(500, 1.0) == 0
    assert rate.spend(1000, 10.0) == 0, "a long rest is worth a second, no more"
    assert rate.spend(1000, 10.0) == pytest.approx(1.0)
