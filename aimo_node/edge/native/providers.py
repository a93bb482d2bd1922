"""``GET /v1/providers``: everybody this node knows, and how busy they are."""

from __future__ import annotations

from typing import Any

from aimo_node.dispatch.inference import InferenceDoor, ProviderView


def provider_list(door: InferenceDoor) -> dict[str, Any]:
    """All known providers, the offline ones too."""
    return {"object": "list", "data": [_provider(view) for view in door.providers()]}


def _provider(view: ProviderView) -> dict[str, Any]:
    return {
        "id": view.peer,
        "object": "provider",
        "models": [info.name for info in view.models],
        "status": view.status,
        "running": view.running,
        "waiting": view.waiting,
        "load": view.load,
        "path": view.path,
        "engine": view.engine,
        "region": view.region,
        "version": view.version,
        "seen_seconds_ago": round(view.seen_seconds_ago, 3),
    }
