"""What a relay knows of providers, and the batches it tells edges and other relays. Pure.

Everything that changes gets the next number of one counter; a subscriber that has seen number n is
told what is newer. `now` is in seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from aimo_node.domain.ids import PeerId
from aimo_node.domain.models import Descriptor as DomainDescriptor
from aimo_node.protocol import limits
from aimo_node.protocol.frames import Descriptor, Directory, Heartbeat

PROVIDERS_MAX: Final = 10_000
"""What one relay keeps: 16 KiB each at worst."""
GONE_MAX: Final = 4_096
"""Departures remembered; a subscriber further behind gets everything anew."""
EXPIRY_SECONDS: Final = 20.0
"""Four missed heartbeats."""


@dataclass(slots=True)
class _Entry:
    """One provider."""

    descriptor: Descriptor
    described: DomainDescriptor
    models: frozenset[str]
    described_at: int
    heartbeat: Heartbeat | None = None
    beaten_at: int = 0
    heard: dict[PeerId, float] = field(default_factory=dict)


class DirectoryBook:
    """The relay's book of providers. `own` is the relay's peer id, as a source."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._entries: dict[PeerId, _Entry] = {}
        self._gone: deque[tuple[int, PeerId]] = deque(maxlen=GONE_MAX)
        self._forgotten = 0
        """The newest departure that fell out of `_gone`."""
        self.revision = 1
        """Grows with every change; 0 stands for a subscriber that has seen nothing."""

    def __len__(self) -> int:
        return len(self._entries)

    def describe(
        self, source: PeerId, frame: Descriptor, described: DomainDescriptor, now: float
    ) -> None:
        """`source` brought a descriptor whose signature was checked; an older one is ignored."""
        entry = self._entries.get(described.peer)
        if entry is None:
            if len(self._entries) >= PROVIDERS_MAX:
                return
        elif _version(described) < _version(entry.described):
            return
        elif frame == entry.descriptor:
            entry.heard[source] = now
            return
        heard = entry.heard if entry is not None else {}
        heard[source] = now
        self.revision += 1
        names = frozenset(str(model.name) for model in described.models)
        kept = entry.heartbeat if entry is not None else None
        if kept is not None and kept.incarnation != described.incarnation:
            kept = None
        self._entries[described.peer] = _Entry(
            frame, described, names, self.revision, kept, self.revision, heard
        )

    def beat(self, source: PeerId, heartbeat: Heartbeat, now: float) -> None:
        """`source` brought a heartbeat; unknown providers and old heartbeats are ignored."""
        entry = self._entries.get(PeerId(heartbeat.node_id))
        if entry is None or heartbeat.incarnation != entry.described.incarnation:
            return
        entry.heard[source] = now
        known = entry.heartbeat
        if known is None or heartbeat.seq > known.seq:
            self.revision += 1
            entry.heartbeat, entry.beaten_at = heartbeat, self.revision

    def leave(self, source: PeerId, peer: PeerId) -> None:
        """`source` lost a provider; it stays while another source still reports it."""
        entry = self._entries.get(peer)
        if entry is not None and entry.heard.pop(source, None) is not None and not entry.heard:
            self._remove(peer)

    def expire(self, now: float) -> None:
        """Forget what no relay reported for `EXPIRY_SECONDS`; own links tell when they end."""
        for peer, entry in list(self._entries.items()):
            for source, heard in list(entry.heard.items()):
                if source != self._own and now - heard > EXPIRY_SECONDS:
                    self.leave(source, peer)

    def batches(
        self, since: int, models: frozenset[str] = frozenset(), *, own_only: bool = False
    ) -> Iterator[Directory]:
        """What is newer than revision `since`, each batch within the wire's limits.

        Args:
            since: what the subscriber has seen; 0, or further back than departures are remembered,
                gives a full batch first.
            models: the models it wants; empty for all.
            own_only: only providers linked to this relay, for other relays.
        """
        full = since == 0 or since < self._forgotten
        since = 0 if full else since
        batch = _Batch(full=full)
        for entry in self._entries.values():
            if own_only and self._own not in entry.heard:
                continue
            if models and not models & entry.models:
                if since and entry.described_at > since:
                    yield from batch.add_gone(entry.described.peer)  # it served one of them before
                continue
            if entry.described_at > since:
                yield from batch.add_descriptor(entry.descriptor)
            if entry.heartbeat is not None and entry.beaten_at > since:
                yield from batch.add_status(entry.heartbeat)
        for revision, peer in self._gone:
            if revision > since and peer not in self._entries and not full:
                yield from batch.add_gone(peer)
        yield from batch.rest()

    def _remove(self, peer: PeerId) -> None:
        del self._entries[peer]
        self.revision += 1
        if len(self._gone) == GONE_MAX:
            self._forgotten = self._gone[0][0]
        self._gone.append((self.revision, peer))


class _Batch:
    """Collects entries and cuts when the next one would not fit."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._said = False
        self._clear()

    def _clear(self) -> None:
        self._descriptors: list[Descriptor] = []
        self._statuses: list[Heartbeat] = []
        self._gone: list[str] = []
        self._size = 0

    def add_descriptor(self, descriptor: Descriptor) -> Iterator[Directory]:
        """Add one; gives the batch that is full before it."""
        yield from self._grow(len(descriptor.body) + limits.SIGNATURE_BYTES + 16)
        self._descriptors.append(descriptor)

    def add_status(self, heartbeat: Heartbeat) -> Iterator[Directory]:
        """Add one; gives the batch that is full before it."""
        yield from self._grow(limits.HEARTBEAT_BYTES_MAX)
        self._statuses.append(heartbeat)

    def add_gone(self, peer: PeerId) -> Iterator[Directory]:
        """Add one; gives the batch that is full before it."""
        yield from self._grow(limits.PEER_ID_CHARS_MAX)
        self._gone.append(peer)

    def rest(self) -> Iterator[Directory]:
        """The last batch; a full one is given even if empty."""
        if self._size or (self._full and not self._said):
            yield self._cut()

    def _grow(self, size: int) -> Iterator[Directory]:
        entries = max(len(self._descriptors), len(self._statuses), len(self._gone))
        too_large = self._size + size > limits.DIRECTORY_BYTES_MAX
        if self._size and (too_large or entries >= limits.DIRECTORY_ENTRIES_MAX):
            yield self._cut()
        self._size += size

    def _cut(self) -> Directory:
        first = self._full and not self._said
        batch = Directory(first, self._descriptors, self._statuses, list(self._gone))
        self._said = True
        self._clear()
        return batch


def _version(descriptor: DomainDescriptor) -> tuple[int, int]:
    return descriptor.incarnation, descriptor.revision
