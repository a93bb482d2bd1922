"""One timer for many streams: calls each stream when its next token is due.

A sleep per token and stream would cost more than the token itself; here all streams share slots of
a millisecond and one task that sleeps until the next occupied slot.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Protocol

import trio

SLOTS_PER_SECOND: Final = 1000

_GRAIN: Final = 1e-6
"""Of a slot: forgives the rounding of times, so that a slot is never woken for and then missed."""


class Paced(Protocol):
    """Something that happens again and again."""

    due: float
    """When it is due next, on trio's clock."""

    def step(self, now: float) -> bool:
        """Do what is due and move `due` on; False takes it off the timer. Must not raise."""


class Pacemaker:
    """Owned by one engine; `add` may be called from any task of the same run."""

    def __init__(self) -> None:
        self._slots: dict[int, list[Paced]] = {}
        self._order: list[int] = []
        self._nap: trio.CancelScope | None = None

    def add(self, paced: Paced) -> None:
        """Put `paced` on the timer; `due` may lie in the past."""
        slot = _slot_of(paced.due)
        self._put(slot, paced)
        if self._nap is not None and slot < self._nap.deadline * SLOTS_PER_SECOND:
            self._nap.deadline = slot / SLOTS_PER_SECOND

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            wake_at = self._order[0] / SLOTS_PER_SECOND if self._order else math.inf
            with trio.CancelScope(deadline=wake_at) as self._nap:
                await trio.sleep(math.inf)
            self._nap = None
            self._turn(trio.current_time())

    def _turn(self, now: float) -> None:
        """Step everything in the slots up to `now`; what is behind comes again in the next slot."""
        last = math.floor(now * SLOTS_PER_SECOND + _GRAIN)
        order, slots = self._order, self._slots
        while order and order[0] <= last:
            for paced in slots.pop(heapq.heappop(order)):
                if paced.step(now):
                    slot = _slot_of(paced.due)
                    self._put(slot if slot > last else last + 1, paced)

    def _put(self, slot: int, paced: Paced) -> None:
        occupied = self._slots.get(slot)
        if occupied is None:
            self._slots[slot] = [paced]
            heapq.heappush(self._order, slot)
        else:
            occupied.append(paced)


def _slot_of(due: float) -> int:
    return math.ceil(due * SLOTS_PER_SECOND - _GRAIN)
