"""What ``aimo engine`` asks of a node: how its engines are, load one, unload one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aimo_node.assembly.control_socket import Command
from aimo_node.dispatch.hosting import HostedEngine
from aimo_node.dispatch.serving import ProviderService
from aimo_node.errors import ConfigError


def engine_commands(service: ProviderService) -> Mapping[str, Command]:
    """The commands by name."""

    async def status(_request: Mapping[str, Any]) -> Mapping[str, Any]:
        return reports(service, service.engines)

    async def load(request: Mapping[str, Any]) -> Mapping[str, Any]:
        engine = _named(service, request)
        await engine.load_now()
        return reports(service, [engine])

    async def unload(request: Mapping[str, Any]) -> Mapping[str, Any]:
        engine = _named(service, request)
        await engine.unload_now()
        return reports(service, [engine])

    return {"engine.status": status, "engine.load": load, "engine.unload": unload}


def reports(service: ProviderService, engines: Sequence[HostedEngine]) -> Mapping[str, Any]:
    """Engines as JSON knows them, each with whether the whole provider is paused."""
    return {"engines": [report(engine) | {"paused": service.paused} for engine in engines]}


def report(engine: HostedEngine) -> dict[str, Any]:
    """One engine as JSON knows it."""
    info, load = engine.info(), engine.load()
    return {
        "label": info.label,
        "engine": info.engine,
        "version": engine.version,
        "state": info.state.text,
        "detail": engine.detail,
        "models": list(info.models),
        "offered": [model.name for model in engine.offered()],
        "owner_only": engine.owner_only,
        "running": load.running,
        "waiting": load.waiting,
        "requests_max": info.requests_max,
        "load": round(load.load, 3),
        "kv_used": round(load.kv_used, 3),
        "prefix_hits": round(load.prefix_hits, 3),
        "first_token_ms": round(load.first_token_seconds * 1000),
        "idle_unload_seconds": engine.plan.idle_seconds,
    }


def _named(service: ProviderService, request: Mapping[str, Any]) -> HostedEngine:
    labels = {engine.plan.label: engine for engine in service.engines}
    label = request.get("label")
    if label is None and len(labels) == 1:
        return next(iter(labels.values()))
    if not isinstance(label, str) or label not in labels:
        listed = ", ".join(labels) or "none"
        raise ConfigError(
            f"say which engine: {listed}"
            if label is None
            else f"there is no engine called {label!r}; there are: {listed}"
        )
    return labels[label]
