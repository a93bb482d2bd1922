"""The relays of its mesh that a node knows: those its owner told it, and those it learned of.

No I/O and no clock: whoever changes the book says what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from aimo_node.domain.ids import PeerId
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.protocol import limits

LEARNED_MAX: Final = limits.DIRECTORY_RELAYS_MAX
"""Relays known besides those told: each relay of a mesh is linked to all others."""
LINKED_WANTED: Final = 2
"""Relays a node is linked to at a time, if it knows as many: one, and one for when that dies."""
STALE_MS: Final = 30 * 24 * 3600 * 1000
"""A relay that was not linked for so long makes room for a new one."""


@dataclass(slots=True)
class KnownRelay:
    """One relay.

    Attributes:
        told: addresses by ``--join``, with ``/p2p/PEER``; empty for one that was learned of.
        announced: those that it made known itself.
        version: of what it made known; (0, 0) if it has not yet.
        linked_ms: when it was linked last, milliseconds since the epoch; 0 for never.
        failures: dials that failed in a row.
    """

    peer: PeerId
    told: tuple[str, ...] = ()
    announced: tuple[str, ...] = ()
    version: tuple[int, int] = (0, 0)
    linked_ms: int = 0
    failures: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to dial it, each once."""
        return tuple(dict.fromkeys((*self.told, *self.announced)))


class RelayBook:
    """Relays by peer id. What was told stays; what was learned is bounded."""

    def __init__(self, own: PeerId, told: Mapping[PeerId, Sequence[str]]) -> None:
        """`told`: addresses by peer id; `own`: this node, which is never in the book."""
        self._own = own
        self._relays = {peer: KnownRelay(peer, tuple(told[peer])) for peer in told if peer != own}
        self._watchers: list[Callable[[], None]] = []

    def __contains__(self, peer: object) -> bool:
        return peer in self._relays

    def __iter__(self) -> Iterator[KnownRelay]:
        return iter(list(self._relays.values()))

    def __len__(self) -> int:
        return len(self._relays)

    def get(self, peer: PeerId) -> KnownRelay | None:
        """The entry of one relay."""
        return self._relays.get(peer)

    @property
    def told(self) -> tuple[PeerId, ...]:
        """Those that this node's owner named."""
        return tuple(relay.peer for relay in self._relays.values() if relay.told)

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called after each change from now on."""
        self._watchers.append(changed)

    def learn(self, announcement: RelayAnnouncement, now_ms: int) -> bool:
        """Take what a relay says of itself, checked by the caller; whether it is news."""
        if announcement.peer == self._own:
            return False
        relay = self._relays.get(announcement.peer)
        if relay is None:
            if not self._make_room(now_ms):
                return False
            relay = self._relays[announcement.peer] = KnownRelay(announcement.peer)
        elif announcement.version <= relay.version:
            return False
        moved = relay.announced != announcement.addresses
        relay.announced, relay.version = announcement.addresses, announcement.version
        relay.failures = 0 if moved else relay.failures  # what failed was another way
        self._tell()
        return True

    def restore(self, kept: Iterable[KnownRelay]) -> None:
        """Take what an earlier life knew; what was told now is not replaced."""
        for old in kept:
            relay = self._relays.get(old.peer)
            if relay is not None:
                relay.announced, relay.version = old.addresses, old.version
                relay.linked_ms = old.linked_ms
            elif old.peer != self._own and self._count_learned() < LEARNED_MAX:
                self._relays[old.peer] = KnownRelay(
                    old.peer, (), old.addresses, old.version, old.linked_ms
                )

    def linked(self, peer: PeerId, now_ms: int) -> None:
        """There is, or was until now, a link to a relay."""
        relay = self._relays.get(peer)
        if relay is not None:
            relay.linked_ms, relay.failures = now_ms, 0
            self._tell()

    def failed(self, peer: PeerId) -> None:
        """A dial of a relay failed, or its link did not last."""
        relay = self._relays.get(peer)
        if relay is not None:
            relay.failures += 1

    def forget(self, peer: PeerId) -> None:
        """A relay that does not belong here; what was told stays."""
        relay = self._relays.get(peer)
        if relay is not None and not relay.told:
            del self._relays[peer]
            self._tell()

    def _count_learned(self) -> int:
        return sum(not relay.told for relay in self._relays.values())

    def _make_room(self, now_ms: int) -> bool:
        """A newcomer only takes the place of one that failed and was not linked for long, so that
        names somebody makes up push out nobody who was seen to be a relay."""
        if self._count_learned() < LEARNED_MAX:
            return True
        useless = [
            relay
            for relay in self._relays.values()
            if not relay.told and relay.failures and now_ms - relay.linked_ms > STALE_MS
        ]
        if not useless:
            return False
        del self._relays[max(useless, key=lambda relay: relay.failures).peer]
        return True

    def _tell(self) -> None:
        for changed in self._watchers:
            changed()


def learned_to_dial(
    book: RelayBook, count: int, unfit: Container[PeerId], chance: Random
) -> list[PeerId]:
    """At most `count` learned relays to dial now.

    Those that failed least come first, then those that were linked before; chance decides between
    equals, so that the nodes of a mesh spread over its relays.

    Args:
        unfit: those linked, being dialled, or resting after a failure.
    """
    fit = [relay for relay in book if not relay.told and relay.peer not in unfit]
    fit.sort(key=lambda relay: (relay.failures, not relay.linked_ms, chance.random()))
    return [relay.peer for relay in fit[: max(count, 0)]]
