"""What members of a relay may cost it, counted without a network."""

import pytest

from aimo_node.domain.ids import PeerId
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
    assert not book._circuits
    assert not book._rates


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
