"""Ctrl-C and its relatives for a program that must not stop between two particular lines."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Final

_WATCHED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptGate:
    """While entered, signals raise: KeyboardInterrupt for Ctrl-C, SystemExit(0) for the others.

    While `closed`, they wait; the first one raises when the gate opens again. For the main
    thread of a program without an event loop.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._is_closed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptGate:
        """Take the signals over; those that are ignored, as under nohup, stay ignored."""
        for number in _WATCHED:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Signals that come now raise at the end of the block, unless it ends by an error."""
        seen = len(self.received)
        was_closed, self._is_closed = self._is_closed, True
        try:
            yield
        finally:
            self._is_closed = was_closed
        if len(self.received) > seen and not was_closed:
            self._raise(self.received[seen])

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if not self._is_closed:
            self._raise(number)

    def _raise(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)
