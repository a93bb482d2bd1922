"""A node that is edge and provider at once knows its own engines, without asking a relay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from aimo_node.domain.models import Descriptor, Status
from aimo_node.routing.table import RoutingTable

OWN_PATH: Final = "local"
"""How a node reaches itself."""


class OwnProvider:
    """Puts what this node offers straight into its routing table.

    It is the only one who speaks of this node there: discovery leaves its entry alone. So engines
    that are for the owner only, and never announced, can be asked here, and a change is known at
    once.
    """

    def __init__(
        self,
        table: RoutingTable,
        describe: Callable[[], Descriptor],
        status: Callable[[], Status],
    ) -> None:
        """
        Args:
            table: the edge's.
            describe: what this node offers at its own edge now; its revision is filled in here.
            status: how it is now; its seq is filled in here.
        """
        self._table = table
        self._describe = describe
        self._status = status
        self._said: Descriptor | None = None
        self._seq = 0

    def refresh(self, now: float) -> None:
        """Say it anew: call it on every change, and every second or so for the load.

        Without models and engines this node is no provider, and leaves the table.

        Args:
            now: in seconds of the clock the table is told.
        """
        described = self._describe()
        own = described.peer
        if not (described.models or described.engines):
            self._table.unlinked(own)
            return
        revision = 0 if self._said is None else self._said.revision
        if self._said is None or replace(described, revision=revision) != self._said:
            self._said = replace(described, revision=revision + 1)
        self._table.describe(own, self._said, now)
        self._table.linked(own, OWN_PATH, now)
        self._seq += 1
        self._table.report(own, replace(self._status(), seq=self._seq), now)
