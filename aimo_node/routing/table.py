"""Who is there: every provider this node has heard of, from whom, and how it is doing.

Pure: `now` is an argument, in seconds of any steady clock. Owned by one task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status

STATUS_SECONDS_MAX: Final = 20.0
"""Four missed heartbeats: a provider nobody reports any more is forgotten by then."""
RESTART_SECONDS: Final = 6.0
"""A provider notices within a second that its relay is back, and backs off at most five."""
PROVIDERS_MAX: Final = 20_000
"""What a table may hold; more than any mesh we route in today."""
PROVIDERS_PER_SOURCE_MAX: Final = 10_000
"""What one relay may fill of it, as many as a relay keeps: the others still find room."""
PENALTY_SECONDS: Final = 2.0
PENALTY_SECONDS_MAX: Final = 60.0
"""A provider that failed is tried last for a while that doubles with each failure in a row."""
_SERVE_NOTHING: Final = (EngineState.STOPPING, EngineState.ERROR, EngineState.NOT_INSTALLED)


@dataclass(slots=True, eq=False)
class ProviderEntry:
    """What is known about one provider. Mutated by the table only."""

    peer: PeerId
    descriptor: Descriptor
    offers: dict[ModelName, ModelInfo] = field(default_factory=dict)
    """What may be asked of it, by its descriptor."""
    status: Status | None = None
    heard: dict[PeerId, float] = field(default_factory=dict)
    """By whom and when it was last reported; its own id stands for a link to it."""
    linked: bool = False
    suspect: bool = False
    draining: bool = False
    path: str = ""
    rtt_seconds: float | None = None
    in_flight: int = 0
    chosen: int = 0
    """When it was last chosen, as a running number: ties go to the one that waited longest."""
    failures: int = 0
    penalty_until: float = 0.0

    @property
    def health(self) -> Health:
        """Health by its last heartbeat; what was only described counts as healthy if it offers
        anything."""
        if self.draining or not self.offers:
            return Health.OFFLINE
        return self.status.health if self.status is not None else Health.HEALTHY

    @property
    def available(self) -> bool:
        """Whether a request may be sent there. A relay's word alone does not rule out a provider
        that this node has a link to: heartbeats are not signed."""
        if self.draining or not self.offers:
            return False
        return self.linked or self.status is None or self.status.health is not Health.OFFLINE

    @property
    def load(self) -> Load:
        """Load by its last heartbeat."""
        return self.status.load if self.status is not None else Load()

    @property
    def heard_at(self) -> float:
        """When anybody last reported it."""
        return max(self.heard.values(), default=0.0)


class _Group:
    """Some providers of one model, in an order that can be walked from any place."""

    __slots__ = ("_entries", "_order")

    def __init__(self) -> None:
        self._entries: dict[PeerId, ProviderEntry] = {}
        self._order: list[ProviderEntry] | None = None

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[ProviderEntry]:
        return iter(self._entries.values())

    def add(self, entry: ProviderEntry) -> None:
        self._entries[entry.peer] = entry
        self._order = None

    def drop(self, peer: PeerId) -> None:
        if self._entries.pop(peer, None) is not None:
            self._order = None

    def turned(self, start: int) -> Iterator[ProviderEntry]:
        """All of them, beginning at place `start` and going round."""
        order = self._order
        if order is None:
            order = self._order = list(self._entries.values())
        count = len(order)
        start = start % count if count else 0
        yield from map(order.__getitem__, range(start, count))
        yield from map(order.__getitem__, range(start))


_Groups: TypeAlias = tuple[_Group, _Group, _Group, _Group]
"""Those that answer at once with a link and without one, then those that load the model first or
do not serve it now, likewise."""


class RoutingTable:
    """Providers by peer id and by model."""

    def __init__(self) -> None:
        self._entries: dict[PeerId, ProviderEntry] = {}
        self._by_model: dict[ModelName, _Groups] = {}
        self._planned: dict[ModelName, _Group] = {}
        """Whose engine has the model, but is not ready for it."""
        self._reported: Counter[PeerId] = Counter()
        """How many providers each source reports."""
        self._choices = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ProviderEntry]:
        return iter(self._entries.values())

    def get(self, peer: PeerId) -> ProviderEntry | None:
        """The entry of one provider."""
        return self._entries.get(peer)

    def serving(self, model: ModelName) -> list[ProviderEntry]:
        """Everybody who offers the model, in whatever state."""
        return [entry for group in self._by_model.get(model, ()) for entry in group]

    def knows(self, model: ModelName) -> bool:
        """Whether anybody offers the model, or has an engine for it that is not ready."""
        return model in self._by_model or model in self._planned

    def planned(self, model: ModelName) -> Iterator[ProviderEntry]:
        """Whose engine has the model, but is not ready: it starts, or it failed."""
        return iter(self._planned.get(model, ()))

    def in_turn(self, model: ModelName) -> Iterator[ProviderEntry]:
        """As `serving`: who answers at once before who loads first, those with a link first, and
        beginning with other ones after each request: who looks at a few of many has seen all of
        them in the end."""
        for group in self._by_model.get(model, ()):
            yield from group.turned(self._choices)

    def models(self, trusted: Set[PeerId] | None = None) -> list[ModelInfo]:
        """Each model with a provider that is not offline, once, by name; as one that answers at
        once offers it, if there is one. `trusted`: of these providers only."""
        found: dict[ModelName, ModelInfo] = {}
        for entry in self._entries.values():
            may_be_asked = trusted is None or entry.peer in trusted
            if may_be_asked and entry.health is not Health.OFFLINE:
                for name, model in entry.offers.items():
                    known = found.get(name)
                    if known is None or (_is_loaded(model) and not _is_loaded(known)):
                        found[name] = model
        return [found[name] for name in sorted(found)]

    def describe(self, source: PeerId, descriptor: Descriptor, now: float) -> bool:
        """`source` says what a provider offers; False if that is old news or the table is full."""
        entry = self._entries.get(descriptor.peer)
        if entry is None:
            from_source = self._reported[source]
            if len(self._entries) >= PROVIDERS_MAX or from_source >= PROVIDERS_PER_SOURCE_MAX:
                return False
            entry = self._entries[descriptor.peer] = ProviderEntry(descriptor.peer, descriptor)
        elif _version(descriptor) < _version(entry.descriptor):
            return False
        self._hear(entry, source, now)
        if entry.descriptor.incarnation != descriptor.incarnation:
            entry.status = None
            entry.draining = False
            entry.failures, entry.penalty_until = 0, 0.0
        self._unlist(entry)
        entry.descriptor = descriptor
        self._enlist(entry)
        return True

    def report(self, source: PeerId, status: Status, now: float) -> None:
        """`source` passes on a heartbeat; unknown providers and old heartbeats are ignored."""
        entry = self._entries.get(status.peer)
        if entry is None or status.incarnation < entry.descriptor.incarnation:
            return
        self._hear(entry, source, now)
        known = entry.status
        if known is None or (status.incarnation, status.seq) > (known.incarnation, known.seq):
            entry.status = status

    def forget(self, source: PeerId, peer: PeerId) -> None:
        """`source` says a provider has gone; it stays while somebody else still reports it."""
        entry = self._entries.get(peer)
        if entry is not None and source in entry.heard:
            self._unhear(entry, source)
            if not entry.heard:
                self._remove(entry)

    def restart(self, source: PeerId, now: float) -> None:
        """`source` starts anew: what it does not repeat within `RESTART_SECONDS` is forgotten.

        Not at once, because a relay that was restarted hears of its providers again one by one.
        """
        stale = now - STATUS_SECONDS_MAX + RESTART_SECONDS
        for entry in self._entries.values():
            if source in entry.heard:
                entry.heard[source] = min(entry.heard[source], stale)

    def expire(self, now: float) -> list[PeerId]:
        """Forget whom nobody reported for `STATUS_SECONDS_MAX`; returns who that was."""
        gone: list[PeerId] = []
        for entry in list(self._entries.values()):
            for source, heard in list(entry.heard.items()):
                linked = source == entry.peer and entry.linked
                if not linked and now - heard > STATUS_SECONDS_MAX:
                    self._unhear(entry, source)
            if not entry.heard:
                self._remove(entry)
                gone.append(entry.peer)
        return gone

    def linked(self, peer: PeerId, path: str, now: float) -> None:
        """A link to the provider is open."""
        entry = self._entries.get(peer)
        if entry is not None:
            self._unlist(entry)
            entry.linked, entry.suspect, entry.draining, entry.path = True, False, False, path
            self._enlist(entry)
            self._hear(entry, peer, now)

    def unlinked(self, peer: PeerId) -> None:
        """The link to the provider is gone; relays may still report it."""
        entry = self._entries.get(peer)
        if entry is not None:
            self._unlist(entry)
            entry.linked, entry.suspect, entry.draining, entry.path = False, False, False, ""
            self._enlist(entry)
            self.forget(peer, peer)

    def link_state(self, peer: PeerId, *, suspect: bool, draining: bool) -> None:
        """The link to the provider changed."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.suspect, entry.draining = suspect, draining

    def begun(self, peer: PeerId, rtt_seconds: float | None = None) -> None:
        """A request was sent to the provider."""
        entry = self._entries.get(peer)
        if entry is not None:
            self._choices += 1
            entry.in_flight += 1
            entry.chosen = self._choices
            entry.rtt_seconds = rtt_seconds if rtt_seconds is not None else entry.rtt_seconds

    def ended(self, peer: PeerId, *, failed: bool | None, now: float) -> None:
        """A request to the provider ended; `failed` means through the provider's fault, None says
        nothing of it.

        What fails while a penalty lasts belongs to the same event: a thousand requests on one lost
        link are one failure.
        """
        entry = self._entries.get(peer)
        if entry is None:
            return
        entry.in_flight = max(0, entry.in_flight - 1)
        if failed is False:
            entry.failures, entry.penalty_until = 0, 0.0
        if not failed or now < entry.penalty_until:
            return
        entry.failures += 1
        penalty = PENALTY_SECONDS * 2 ** min(entry.failures - 1, 10)
        entry.penalty_until = now + min(penalty, PENALTY_SECONDS_MAX)

    def _hear(self, entry: ProviderEntry, source: PeerId, now: float) -> None:
        if source not in entry.heard:
            self._reported[source] += 1
        entry.heard[source] = now

    def _unhear(self, entry: ProviderEntry, source: PeerId) -> None:
        del entry.heard[source]
        self._reported[source] -= 1
        if not self._reported[source]:
            del self._reported[source]

    def _enlist(self, entry: ProviderEntry) -> None:
        entry.offers = {model.name: model for model in _offered(entry.descriptor)}
        for model in entry.descriptor.models:
            groups = self._by_model.get(model.name)
            if groups is None:
                groups = self._by_model[model.name] = (_Group(), _Group(), _Group(), _Group())
            offer = entry.offers.get(model.name)
            waits = offer is None or not _is_loaded(offer)
            groups[2 * waits + (not entry.linked)].add(entry)
        for name in _planned(entry.descriptor):
            self._planned.setdefault(name, _Group()).add(entry)

    def _unlist(self, entry: ProviderEntry) -> None:
        for model in entry.descriptor.models:
            groups = self._by_model.get(model.name)
            if groups is not None:
                for group in groups:
                    group.drop(entry.peer)
                if not any(groups):
                    del self._by_model[model.name]
        for name in _planned(entry.descriptor):
            planned = self._planned.get(name)
            if planned is not None:
                planned.drop(entry.peer)
                if not planned:
                    del self._planned[name]

    def _remove(self, entry: ProviderEntry) -> None:
        self._unlist(entry)
        del self._entries[entry.peer]


def _is_loaded(model: ModelInfo) -> bool:
    return model.state is EngineState.RUNNING


def _offered(descriptor: Descriptor) -> Iterator[ModelInfo]:
    """What may be asked. If nothing runs there is at most what a request would load; a provider
    that stops or failed lists what it had."""
    runs = descriptor.engine_state is EngineState.RUNNING
    loads = descriptor.engine_state not in _SERVE_NOTHING
    return (model for model in descriptor.models if runs or (loads and not _is_loaded(model)))


def _planned(descriptor: Descriptor) -> set[ModelName]:
    """What its engines have and it does not offer."""
    named = {name for engine in descriptor.engines for name in engine.models}
    return named - {model.name for model in descriptor.models}


def _version(descriptor: Descriptor) -> tuple[int, int]:
    return descriptor.incarnation, descriptor.revision
