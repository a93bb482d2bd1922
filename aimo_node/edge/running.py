"""Which requests run, so that the end of a drain's grace period can end them with an error."""

from __future__ import annotations

import trio


class Running:
    """The cancel scopes of running requests. Used from one trio thread only.

    A scope cancelled from here means: the grace period is over, say so to the consumer and end.
    """

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._is_cut = False

    def __len__(self) -> int:
        """How many run."""
        return len(self._scopes)

    def enter(self) -> trio.CancelScope:
        """A scope for one request; give it to `leave` in the end."""
        scope = trio.CancelScope()
        self._scopes.add(scope)
        if self._is_cut:
            scope.cancel()
        return scope

    def leave(self, scope: trio.CancelScope) -> None:
        """The request is over; idempotent."""
        self._scopes.discard(scope)

    def cut(self) -> None:
        """End what runs, and at once what comes."""
        self._is_cut = True
        for scope in tuple(self._scopes):
            scope.cancel()
