"""An engine's places and the queue in front of them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.dispatch.places import RETRY_SECONDS_MAX, WAIT_SECONDS, Place, Places
from aimo_node.errors import Overloaded


async def test_first_come_first_served(autojump_clock: object) -> None:
    places = Places(waiting_max=3, limit=1)
    order: list[int] = []
    first = places.take()
    assert first.position == 0

    async def wait_turn(number: int, place: Place) -> None:
        await place.wait()
        order.append(number)
        place.leave()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            place = places.take()
            assert place.position == number + 1
            nursery.start_soon(wait_turn, number, place)
        await wait_all_tasks_blocked()
        assert (places.running, places.waiting) == (1, 3)
        first.leave()
    assert order == [0, 1, 2]
    assert (places.running, places.waiting) == (0, 0)


def test_a_full_queue_refuses_at_once() -> None:
    places = Places(waiting_max=0, limit=0)
    places.resize(1)

    async def main() -> None:
        places.take()
        with pytest.raises(
            Overloaded, match=r"every place of the engine is taken \(1 of 1\)"
        ) as caught:
            places.take()
        assert caught.value.retry_after_seconds == 1

    trio.run(main)


def test_who_may_not_wait_is_refused_though_the_queue_has_room() -> None:
    async def main() -> None:
        places = Places(waiting_max=4, limit=1)
        places.take(may_wait=False)
        with pytest.raises(Overloaded):
            places.take(may_wait=False)
        assert places.take().position == 1

    trio.run(main)


async def test_retry_after_follows_how_long_places_are_held(autojump_clock: object) -> None:
    places = Places(waiting_max=0, limit=1)
    place = places.take()
    await trio.sleep(20)
    place.leave()
    assert places.retry_after_seconds() == 20
    for _ in range(40):
        place = places.take()
        await trio.sleep(1_000)
        place.leave()
    assert places.retry_after_seconds() == RETRY_SECONDS_MAX


async def test_who_leaves_the_queue_makes_room_in_it(autojump_clock: object) -> None:
    places = Places(waiting_max=1, limit=1)
    held = places.take()
    waiting = places.take()
    waiting.leave()
    waiting.leave()
    assert (places.running, places.waiting) == (1, 0)
    last = places.take()
    held.leave()
    await last.wait()
    assert places.running == 1
    last.leave()
    await places.wait_idle()


async def test_nobody_waits_for_ever(autojump_clock: object) -> None:
    places = Places(waiting_max=1, limit=1)
    places.take()
    waiting = places.take()
    started = trio.current_time()
    with pytest.raises(Overloaded, match="no place became free"):
        await waiting.wait()
    assert trio.current_time() - started == pytest.approx(WAIT_SECONDS)
    waiting.leave()
    assert places.waiting == 0


async def test_more_places_let_in_who_waits(autojump_clock: object) -> None:
    places = Places(waiting_max=2, limit=1)
    places.take()
    second, third = places.take(), places.take()
    places.resize(3)
    await second.wait()
    await third.wait()
    assert places.running == 3


async def test_newcomers_do_not_overtake_the_queue(autojump_clock: object) -> None:
    places = Places(waiting_max=2, limit=1)
    first = places.take()
    second = places.take()
    first.leave()  # the place is the second one's from now on, though it has not looked yet
    assert places.take().position == 1
    await second.wait()


async def test_fewer_places_let_nobody_in_until_enough_have_left(autojump_clock: object) -> None:
    """The engine was loaded again, and serves fewer at a time than before."""
    places = Places(waiting_max=2, limit=3)
    held = [places.take() for _ in range(3)]
    places.resize(1)
    waiting = places.take()
    held.pop().leave()
    held.pop().leave()
    assert (places.running, places.waiting) == (1, 1)
    held.pop().leave()
    await waiting.wait()
    assert (places.running, places.waiting) == (1, 0)


async def test_everybody_who_waits_for_the_end_is_told(autojump_clock: object) -> None:
    places = Places(waiting_max=0, limit=1)
    place = places.take()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.wait_idle)
        nursery.start_soon(places.wait_idle)
        await wait_all_tasks_blocked()
        place.leave()
        with trio.fail_after(1):
            await wait_all_tasks_blocked()
            nursery.cancel_scope.deadline = trio.current_time() + 1
    assert not nursery.cancel_scope.cancelled_caught
