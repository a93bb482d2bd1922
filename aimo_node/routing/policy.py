"""Who should answer: candidates in order, each with its reasons, as data.

Pure: the same request, table and time give the same decision.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.models import Health
from aimo_node.routing.table import ProviderEntry, RoutingTable


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
    """The outcome: who to try in which order, and who was left out why."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[tuple[PeerId, Verdict], ...]
    model_known: bool
    provider_known: bool


def choose(request: RouteRequest, table: RoutingTable, now: float) -> Decision:
    """Order the providers of a model: healthy before degraded, unsuspected before suspect,
    those without recent failures first, then by load, then whoever waited longest.

    A provider that is in trouble comes last and not never: it may be the only one.
    """
    pinned = table.get(request.provider) if request.provider is not None else None
    if request.provider is not None:
        entries = [pinned] if pinned is not None else []
    else:
        entries = table.serving(request.model)
    ranked: list[tuple[tuple[float, ...], ProviderEntry]] = []
    excluded: list[tuple[PeerId, Verdict]] = []
    for entry in entries:
        verdict = _verdict(entry, request)
        if verdict is None:
            ranked.append((_rank(entry, now), entry))
        else:
            excluded.append((entry.peer, verdict))
    ranked.sort(key=lambda pair: pair[0])
    return Decision(
        candidates=tuple(Candidate(entry.peer, _reasons(entry, now)) for _, entry in ranked),
        excluded=tuple(excluded),
        model_known=bool(table.serving(request.model)),
        provider_known=pinned is not None,
    )


def _verdict(entry: ProviderEntry, request: RouteRequest) -> Verdict | None:
    model = next((m for m in entry.descriptor.models if m.name == request.model), None)
    if model is None:
        return Verdict.WRONG_MODEL
    if request.endpoint not in model.endpoints:
        return Verdict.WRONG_ENDPOINT
    return Verdict.OFFLINE if entry.health is Health.OFFLINE else None


def _rank(entry: ProviderEntry, now: float) -> tuple[float, ...]:
    return (
        float(entry.health is not Health.HEALTHY),
        float(entry.suspect),
        max(0.0, entry.penalty_until - now),
        _occupancy(entry),
        float(not entry.linked),
        float(entry.chosen),
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
