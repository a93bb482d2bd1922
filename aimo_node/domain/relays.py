"""A relay as it makes itself known to the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from aimo_node.domain.ids import PeerId


@dataclass(frozen=True, slots=True)
class RelayAnnouncement:
    """Where a relay says it can be dialled.

    Attributes:
        incarnation: number of the relay's run, greater with each start.
        revision: grows with each change in one incarnation.
        addresses: multiaddrs, each ending in ``/p2p/`` and the peer id, the best first.
    """

    peer: PeerId
    incarnation: int
    revision: int
    addresses: tuple[str, ...]

    @property
    def version(self) -> tuple[int, int]:
        """The greater one is newer."""
        return self.incarnation, self.revision
