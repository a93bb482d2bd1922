"""Which relays a node knows, which it forgets, which it dials."""

from __future__ import annotations

import random

from aimo_node.domain.ids import PeerId
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.mesh.relays.book import (
    LEARNED_MAX,
    STALE_MS,
    KnownRelay,
    RelayBook,
    learned_to_dial,
)

OWN, TOLD = PeerId("own"), PeerId("told")
NOW_MS = 2 * STALE_MS


def says(name: str, address: str = "", incarnation: int = 1, revision: int = 1):
    return RelayAnnouncement(PeerId(name), incarnation, revision, (address or f"/{name}",))


def book_of(*learned: str) -> RelayBook:
    book = RelayBook(OWN, {TOLD: ["/told"], OWN: ["/own"]})
    for name in learned:
        assert book.learn(says(name), NOW_MS)
    return book


def full_book() -> RelayBook:
    return book_of(*(f"relay-{number}" for number in range(LEARNED_MAX)))


def names(book: RelayBook) -> set[str]:
    return {str(relay.peer) for relay in book}


def test_a_newer_address_replaces_an_older_one_and_not_the_other_way_round() -> None:
    book = book_of("a")
    assert book.learn(says("a", "/moved", incarnation=2), NOW_MS)
    assert not book.learn(says("a", "/before", incarnation=1, revision=9), NOW_MS)
    known = book.get(PeerId("a"))
    assert known is not None
    assert known.addresses == ("/moved",)


def test_what_was_told_stays_and_is_dialled_where_it_said_it_moved_to_as_well() -> None:
    book = book_of()
    assert book.learn(says("told", "/moved"), NOW_MS)
    book.forget(TOLD)
    assert [relay.addresses for relay in book] == [("/told", "/moved")]
    assert book.told == (TOLD,)
    assert not book.learn(says("own"), NOW_MS), "nobody is a relay of its own"


def test_made_up_relays_push_out_nobody_who_was_linked() -> None:
    book = full_book()
    seen = PeerId("relay-3")
    book.linked(seen, NOW_MS)
    for relay in book:
        if relay.peer != seen:
            book.failed(relay.peer)
    book.failed(PeerId("relay-5"))
    assert book.learn(says("fake-0"), NOW_MS)
    assert names(book) >= {"fake-0", "relay-3"}
    assert "relay-5" not in names(book), "the one that failed most made room"
    for number in range(1, 100):
        book.learn(says(f"fake-{number}"), NOW_MS)
    assert len(book) == LEARNED_MAX + 1
    assert seen in book
    assert TOLD in book


def test_a_full_book_in_which_nobody_failed_takes_no_newcomer() -> None:
    book = full_book()
    assert not book.learn(says("late"), NOW_MS)
    assert PeerId("late") not in book


def test_a_relay_that_was_not_linked_for_long_makes_room() -> None:
    book = full_book()
    for relay in book:
        book.linked(relay.peer, NOW_MS)
    book.failed(PeerId("relay-7"))
    assert not book.learn(says("late"), NOW_MS + STALE_MS)
    assert book.learn(says("late"), NOW_MS + STALE_MS + 1)
    assert PeerId("relay-7") not in book


def test_an_earlier_life_does_not_replace_what_was_told_now() -> None:
    book = book_of()
    old = [
        KnownRelay(TOLD, (), ("/told-before",), (3, 1), 7),
        KnownRelay(OWN, (), ("/own",), (3, 1), 7),
        *(KnownRelay(PeerId(f"r{number}"), (), ("/r",), (1, 1), 1) for number in range(40)),
    ]
    book.restore(old)
    told = book.get(TOLD)
    assert told is not None
    assert (told.told, told.addresses) == (("/told",), ("/told", "/told-before"))
    assert OWN not in book
    assert len(book) == LEARNED_MAX + 1


def test_who_failed_least_and_was_linked_before_is_dialled_first() -> None:
    book = book_of("never", "linked", "failed", "busy")
    book.linked(PeerId("linked"), NOW_MS)
    book.failed(PeerId("failed"))
    unfit = {PeerId("busy")}
    found = learned_to_dial(book, 5, unfit, random.Random(1))
    assert found == [PeerId("linked"), PeerId("never"), PeerId("failed")]
    assert learned_to_dial(book, 1, unfit, random.Random(1)) == [PeerId("linked")]
    assert learned_to_dial(book, -1, unfit, random.Random(1)) == []


def test_nodes_that_know_the_same_relays_spread_over_them() -> None:
    book = book_of("a", "b", "c", "d")
    chosen = {learned_to_dial(book, 1, (), random.Random(seed))[0] for seed in range(40)}
    assert len(chosen) == 4


def test_every_change_is_told() -> None:
    book, told = book_of("a"), []
    book.watch(lambda: told.append(len(book)))
    book.learn(says("b"), NOW_MS)
    book.learn(says("b"), NOW_MS)
    book.linked(PeerId("b"), NOW_MS)
    book.forget(PeerId("b"))
    assert told == [3, 3, 2]
