"""Counts the requests an engine has in hand: its limit, its load, and how it drains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from aimo_node.domain.models import Load
from aimo_node.errors import Draining, Overloaded


class Admission:
    """Owned by one engine; touched by the tasks of its requests.

    HTTP pools lose slots when a request is cancelled in the wrong moment, so this count, not the
    pool, is what limits the engine.

    Args:
        requests_max: concurrent requests; one more is refused at once.
    """

    def __init__(self, requests_max: int) -> None:
        self.requests_max = requests_max
        self.running = 0
        self.draining = False
        self._idle: trio.Event | None = None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold one place for the length of the block.

        Raises:
            Draining: the engine is going away.
            Overloaded: every place is taken.
        """
        if self.draining:
            raise Draining("the engine is going away and starts nothing new")
        if self.running >= self.requests_max:
            raise Overloaded(f"the engine is busy with {self.running} requests, its limit")
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if not self.running and self._idle is not None:
                self._idle.set()

    async def drain(self) -> None:
        """Refuse new requests from now on and return when none is running."""
        self.draining = True
        if self.running:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def load(self) -> Load:
        """How many places are taken."""
        return Load(load=min(1.0, self.running / self.requests_max), running=self.running)
