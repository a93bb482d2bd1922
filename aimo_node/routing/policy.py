"""Who should answer: candidates in order, each with its reasons, as data.

Pure: the same request, table and time give the same decision.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Set
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Final, TypeAlias

from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.models import EngineState, Health, ModelInfo
from aimo_node.routing.table import ProviderEntry, RoutingTable

CANDIDATES_MAX: Final = 8
"""More than anybody tries for one request."""
PROMISING_MAX: Final = 16
"""With so many to choose from, looking further gains nothing."""
LOOKED_AT_MAX: Final = 128
"""Of those who could take the request at all: when so many are busy, all are."""
NOT_READY_MAX: Final = 8
"""Of those whose engine is not ready, when there is nobody else: enough to say why."""
_Rank: TypeAlias = tuple[Health, bool, bool, float, int, bool, int]
"""Health, loads first, silent, penalty in seconds, tenths taken, without a link, when it was chosen
last. A load takes longer than it takes to find out that a link is dead or somebody fails again."""
_PROMISING: Final[_Rank] = (Health.HEALTHY, False, False, 0.0, 5, False, 0)
"""Healthy, loaded and less than half full: those with a link are filled so far before others are
dialled, if there are many."""
_by_rank: Final = itemgetter(0)


class Verdict(enum.StrEnum):
    """Why a provider cannot be a candidate."""

    OFFLINE = "offline"
    WRONG_MODEL = "does not serve the model"
    WRONG_ENDPOINT = "does not serve the endpoint"
    NOT_READY = "its engine is not ready"
    UNTRUSTED = "not trusted by this edge"


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a decision needs to know.

    Attributes:
        provider: the only acceptable provider, if the consumer pinned one.
        trusted: the only providers that may be asked at all; None trusts every member.
    """

    model: ModelName
    endpoint: Endpoint = Endpoint.CHAT
    provider: PeerId | None = None
    trusted: Set[PeerId] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may answer, as it stood when it was chosen."""

    peer: PeerId
    model_digest: bytes
    """Of the model as it says it serves it; empty if unknown."""
    _rank: _Rank
    _path: str
    _failures: int

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it stands where it stands."""
        health, loads_first, is_silent, penalty, tenths, _, _ = self._rank
        reasons = [health.text, f"occupancy {tenths / 10:.1f}"]
        if loads_first:
            reasons.append("loads first")
        if is_silent:
            reasons.append("silent")
        if penalty:
            reasons.append(f"failed {self._failures} in a row")
        reasons.append(self._path or "no link yet")
        return tuple(reasons)


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome: who to try in which order, and who was left out why, of those looked at."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[tuple[PeerId, Verdict], ...]
    model_known: bool
    provider_known: bool


def choose(request: RouteRequest, table: RoutingTable, now: float) -> Decision:
    """Order the providers of a model: healthy before degraded, those that answer at once before
    those that load the model first, unsuspected before suspect, those without recent failures
    first, then by load, then whoever waited longest.

    A provider that is in trouble comes last and not never: it may be the only one. Of many it
    looks at a few, at others the next time: the best of sixteen is as good as the best of all.
    """
    name, trusted = request.model, request.trusted
    pinned = table.get(request.provider) if request.provider is not None else None
    entries: Iterable[ProviderEntry] = table.in_turn(name)
    if request.provider is not None:
        entries = () if pinned is None else (pinned,)
    ranked: list[tuple[_Rank, ProviderEntry, ModelInfo]] = []
    excluded: list[tuple[PeerId, Verdict]] = []
    promising = 0
    for entry in entries:
        if trusted is not None and entry.peer not in trusted:
            excluded.append((entry.peer, Verdict.UNTRUSTED))
            continue
        model = entry.offers.get(name)
        if model is None or request.endpoint not in model.endpoints or not entry.available:
            excluded.append((entry.peer, _verdict(entry, request)))
            continue
        rank = _rank(entry, model, now)
        ranked.append((rank, entry, model))
        promising += rank < _PROMISING
        if promising >= PROMISING_MAX or len(ranked) >= LOOKED_AT_MAX:
            break
    if not ranked and request.provider is None:
        excluded += [(peer, Verdict.NOT_READY) for peer in _starting(table, request)]
    ranked.sort(key=_by_rank)
    return Decision(
        candidates=tuple(
            Candidate(entry.peer, model.digest, rank, entry.path, entry.failures)
            for rank, entry, model in ranked[:CANDIDATES_MAX]
        ),
        excluded=tuple(excluded),
        model_known=table.knows(name),
        provider_known=pinned is not None,
    )


def _starting(table: RoutingTable, request: RouteRequest) -> Iterable[PeerId]:
    """Some of those whose engine for the model is not ready, and that may be asked once it is."""
    peers = (entry.peer for entry in table.planned(request.model))
    trusted = request.trusted
    return islice((peer for peer in peers if trusted is None or peer in trusted), NOT_READY_MAX)


def _verdict(entry: ProviderEntry, request: RouteRequest) -> Verdict:
    """Why it is no candidate."""
    for model in entry.descriptor.models:
        if model.name == request.model:
            served = request.endpoint in model.endpoints
            return Verdict.OFFLINE if served else Verdict.WRONG_ENDPOINT
    planned = any(request.model in engine.models for engine in entry.descriptor.engines)
    return Verdict.NOT_READY if planned else Verdict.WRONG_MODEL


def _rank(entry: ProviderEntry, model: ModelInfo, now: float) -> _Rank:
    penalty = entry.penalty_until - now
    return (
        entry.health,
        model.state is not EngineState.RUNNING,
        entry.suspect,
        penalty if penalty > 0 else 0.0,
        _tenths_taken(entry),
        not entry.linked,
        entry.chosen,
    )


def _tenths_taken(entry: ProviderEntry) -> int:
    """How much of the provider is taken, what it reports or what we know better; in tenths, so that
    near equals take turns."""
    busy, full = entry.in_flight, 0.0
    if entry.status is not None:
        load = entry.status.load
        busy = max(busy, load.running + load.waiting)
        # an upstream's rate limit is in `load` alone
        full = max(load.load, load.kv_used)
    limit = entry.descriptor.requests_max
    return round(10 * max(busy / limit, full)) if limit else 10 * busy
