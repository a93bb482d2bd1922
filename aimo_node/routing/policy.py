"""Who should answer: candidates in order, each with its reasons, as data.

Pure: the same request, table and time give the same decision.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, TypeAlias

from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.models import Health
from aimo_node.routing.table import ProviderEntry, RoutingTable

CANDIDATES_MAX: Final = 8
"""More than anybody tries for one request."""
PROMISING_MAX: Final = 16
"""With so many to choose from, looking further gains nothing."""
LOOKED_AT_MAX: Final = 128
"""Of those who could take the request at all: when so many are busy, all are."""
_Rank: TypeAlias = tuple[bool, bool, float, float, bool, int]
"""In trouble, silent, penalty, occupancy, without a link, when it was chosen last."""
_PROMISING: Final[_Rank] = (False, False, 0.0, 0.5, False, 0)
"""Healthy and less than half full: those with a link are filled so far before others are dialled,
if there are many."""
_by_rank: Final = itemgetter(0)


class Verdict(enum.StrEnum):
    """Why a provider cannot be a candidate."""

    OFFLINE = "offline"
    WRONG_MODEL = "does not serve the model"
    WRONG_ENDPOINT = "does not serve the endpoint"


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a decision needs to know.

    Attributes:
        provider: the only acceptable provider, if the consumer pinned one.
    """

    model: ModelName
    endpoint: Endpoint = Endpoint.CHAT
    provider: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may answer; `reasons` say why it stands where it stands."""

    peer: PeerId
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome: who to try in which order, and who was left out why, of those looked at."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[tuple[PeerId, Verdict], ...]
    model_known: bool
    provider_known: bool


def choose(request: RouteRequest, table: RoutingTable, now: float) -> Decision:
    """Order the providers of a model: healthy before degraded, unsuspected before suspect,
    those without recent failures first, then by load, then whoever waited longest.

    A provider that is in trouble comes last and not never: it may be the only one. Of many it
    looks at a few, at others the next time: the best of sixteen is as good as the best of all.
    """
    pinned = table.get(request.provider) if request.provider is not None else None
    entries: Iterable[ProviderEntry] = table.in_turn(request.model)
    if request.provider is not None:
        entries = () if pinned is None else (pinned,)
    ranked: list[tuple[_Rank, ProviderEntry]] = []
    excluded: list[tuple[PeerId, Verdict]] = []
    promising = 0
    for entry in entries:
        verdict = _verdict(entry, request)
        if verdict is not None:
            excluded.append((entry.peer, verdict))
            continue
        rank = _rank(entry, now)
        ranked.append((rank, entry))
        promising += rank < _PROMISING
        if promising >= PROMISING_MAX or len(ranked) >= LOOKED_AT_MAX:
            break
    ranked.sort(key=_by_rank)
    best = ranked[:CANDIDATES_MAX]
    return Decision(
        candidates=tuple(Candidate(entry.peer, _reasons(entry, now)) for _, entry in best),
        excluded=tuple(excluded),
        model_known=table.knows(request.model),
        provider_known=pinned is not None,
    )


def _verdict(entry: ProviderEntry, request: RouteRequest) -> Verdict | None:
    for model in entry.descriptor.models:
        if model.name == request.model:
            if request.endpoint not in model.endpoints:
                return Verdict.WRONG_ENDPOINT
            return None if entry.available else Verdict.OFFLINE
    return Verdict.WRONG_MODEL


def _rank(entry: ProviderEntry, now: float) -> _Rank:
    penalty = entry.penalty_until - now
    return (
        entry.health is not Health.HEALTHY,
        entry.suspect,
        max(0.0, penalty),
        _occupancy(entry),
        not entry.linked,
        entry.chosen,
    )


def _occupancy(entry: ProviderEntry) -> float:
    """Share of the provider that is taken: what it reports or what we know better, rounded so that
    near equals take turns."""
    load = entry.load
    busy = max(load.running + load.waiting, entry.in_flight)
    limit = entry.descriptor.requests_max
    return round(max(busy / limit, load.kv_used) if limit else float(busy), 1)


def _reasons(entry: ProviderEntry, now: float) -> tuple[str, ...]:
    reasons = [entry.health.text, f"occupancy {_occupancy(entry):.1f}"]
    if entry.suspect:
        reasons.append("silent")
    if entry.penalty_until > now:
        reasons.append(f"failed {entry.failures} in a row")
    reasons.append(entry.path or "no link yet")
    return tuple(reasons)
