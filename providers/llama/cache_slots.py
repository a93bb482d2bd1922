"""Assigns llama.cpp's slots so that consumers never share a prompt cache.

A slot keeps the tokens of its last prompt, and a prompt that starts alike is answered faster: one
could find out what others have asked. So a slot is reused only for the salt that filled it; for
another salt it is told to start from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a request runs.

    Attributes:
        reuse: whether what the slot holds may be used.
    """

    number: int
    reuse: bool


class CacheSlots:
    """Owned by one engine; as many requests at a time as slots.

    Args:
        slots: their number.
    """

    def __init__(self, slots: int) -> None:
        self._salts: list[str | None] = [None] * slots
        # Least recently used first, so that a cache lives as long as it can.
        self._free = list(range(slots))

    @contextmanager
    def take(self, salt: str) -> Iterator[Slot]:
        """Hold a slot for the length of the block; there must be a free one."""
        position = next(
            (index for index, slot in enumerate(self._free) if self._salts[slot] == salt), 0
        )
        number = self._free.pop(position)
        reuse = self._salts[number] == salt
        self._salts[number] = salt
        try:
            yield Slot(number, reuse)
        finally:
            self._free.append(number)

    def forget(self) -> None:
        """The slots hold something else now: the engine was restarted, or used them on its own."""
        self._salts = [None] * len(self._salts)
