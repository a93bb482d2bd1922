"""The places of one engine, and the bounded queue in front of them: first come, first served."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from aimo_node.errors import Overloaded

WAIT_SECONDS: Final = 30.0
"""After so long in the queue somebody else should try: most consumers give up soon after."""
RETRY_SECONDS_MAX: Final = 60.0
_SMOOTHING: Final = 0.1
"""Weight of the latest request in the mean time a place is held."""


class Places:
    """How many requests an engine has in hand, and who waits for it.

    Attributes:
        limit: requests at a time; 0 is no limit.
        waiting_max: requests in the queue; one more is refused at once.
    """

    def __init__(self, waiting_max: int, limit: int = 0) -> None:
        self.limit = limit
        self.waiting_max = waiting_max
        self._running = 0
        self._queue: deque[Place] = deque()
        self._held_seconds = 0.0
        self._idle = trio.Event()

    @property
    def running(self) -> int:
        """Places taken."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def take(self, *, may_wait: bool = True) -> Place:
        """A place, or one in the queue; `Place.leave` must be called in the end.

        Raises:
            Overloaded: the queue is full, or the request may not wait in it.
        """
        place = Place(self)
        if not self.limit or self._running < self.limit:  # then nobody waits
            self._running += 1
            place.granted()
        elif may_wait and len(self._queue) < self.waiting_max:
            self._queue.append(place)
            place.position = len(self._queue)
        else:
            raise Overloaded(
                f"every place of the engine is taken ({self._running} of {self.limit}), and so is"
                f" every one to wait in ({len(self._queue)})",
                retry_after_seconds=self.retry_after_seconds(),
            )
        return place

    def retry_after_seconds(self) -> float:
        """When a place may be free for who comes now, by how long they were held so far."""
        turns = (len(self._queue) + 1) / max(1, self.limit)
        return round(min(RETRY_SECONDS_MAX, max(1.0, turns * self._held_seconds)))

    def resize(self, limit: int) -> None:
        """The engine says how many it serves at a time; 0 is no limit."""
        self.limit = limit
        self._grant()

    async def wait_idle(self) -> None:
        """Return when no request has a place or waits for one."""
        while self._running or self._queue:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    def left(self, place: Place, held_seconds: float | None) -> None:
        """A request ended after holding a place for so long, or None: it left the queue."""
        if held_seconds is None:
            self._queue.remove(place)
        else:
            self._running -= 1
            known = self._held_seconds
            self._held_seconds = known + (held_seconds - known) * (_SMOOTHING if known else 1.0)
            self._grant()
        if not self._running and not self._queue:
            self._idle.set()

    def _grant(self) -> None:
        while self._queue and (not self.limit or self._running < self.limit):
            self._running += 1
            self._queue.popleft().granted()


class Place:
    """One request's place, or its ticket in the queue.

    Attributes:
        position: in the queue when it was taken, from 1; 0 had a place at once.
    """

    __slots__ = ("_granted", "_left", "_places", "_since", "position")

    def __init__(self, places: Places) -> None:
        self.position = 0
        self._places = places
        self._granted: trio.Event | None = None
        self._since: float | None = None
        self._left = False

    def granted(self) -> None:
        """The place is there."""
        self._since = trio.current_time()
        if self._granted is not None:
            self._granted.set()

    async def wait(self) -> None:
        """Return once the request has its place.

        Raises:
            Overloaded: not within `WAIT_SECONDS`.
        """
        if self._since is not None:
            return
        self._granted = trio.Event()
        with trio.move_on_after(WAIT_SECONDS):
            await self._granted.wait()
        if self._since is None:
            raise Overloaded(
                f"no place became free within {WAIT_SECONDS:.0f} s",
                retry_after_seconds=self._places.retry_after_seconds(),
            )

    def leave(self) -> None:
        """Free the place, or leave the queue; idempotent."""
        if not self._left:
            self._left = True
            held = None if self._since is None else trio.current_time() - self._since
            self._places.left(self, held)
