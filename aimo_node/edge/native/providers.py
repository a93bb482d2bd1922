"""``GET /v1/providers``: everybody this node knows, and how busy they are."""

from __future__ import annotations

from typing import Any

from aimo_node.dispatch.inference import InferenceDoor, ProviderView
from aimo_node.domain.models import EngineInfo


def provider_list(door: InferenceDoor) -> dict[str, Any]:
    """All known providers, the offline ones too."""
    return {"object": "list", "data": [_provider(view) for view in door.providers()]}


def _provider(view: ProviderView) -> dict[str, Any]:
    return {
        "id": view.peer,
        "object": "provider",
        "models": [info.name for info in view.models],
        "model_states": {info.name: info.state.text for info in view.models},
        "status": view.status,
        "running": view.running,
        "waiting": view.waiting,
        "load": view.load,
        "kv_used": view.kv_used,
        "prefix_hits": view.prefix_hits,
        "first_token_ms": round(view.first_token_seconds * 1_000),
        "path": view.path,
        "trusted": view.trusted,
        "engine": view.engine,
        "engines": [_engine(info) for info in view.engines],
        "region": view.region,
        "version": view.version,
        "seen_seconds_ago": round(view.seen_seconds_ago, 3),
    }


def _engine(info: EngineInfo) -> dict[str, Any]:
    return {
        "label": info.label,
        "engine": info.engine,
        "state": info.state.text,
        "models": list(info.models),
        "requests_max": info.requests_max,
    }
