"""``GET /v1/providers``: everybody this node knows, and how busy they are."""

from __future__ import annotations

import re
from typing import Any, Final

from aimo_node.dispatch.inference import InferenceDoor, ProviderView
from aimo_node.domain.links import LinkFacts
from aimo_node.domain.models import EngineInfo

_ADDRESS: Final = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/[^\s;,]+?(?=:?(?:[\s;,]|$))")


def provider_list(door: InferenceDoor) -> dict[str, Any]:
    """All known providers, the offline ones too."""
    return {"object": "list", "data": [provider_view(view) for view in door.providers()]}


def provider_view(view: ProviderView) -> dict[str, Any]:
    """One of them as JSON. Where it is reached is left out: consumers need not know."""
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
        **_link(view.link),
        "trusted": view.trusted,
        "engine": view.engine,
        "engines": [_engine(info) for info in view.engines],
        "region": view.region,
        "version": view.version,
        "seen_seconds_ago": round(view.seen_seconds_ago, 3),
    }


def _link(link: LinkFacts | None) -> dict[str, Any]:
    if link is None:
        return dict.fromkeys(("relay", "round_trip_ms", "since", "since_seconds", "reason"))
    return {
        "relay": link.relay,
        "round_trip_ms": link.round_trip_ms,
        "since": link.since,
        "since_seconds": round(link.open_seconds),
        "reason": _ADDRESS.sub("its address", link.reason),
    }


def _engine(info: EngineInfo) -> dict[str, Any]:
    return {
        "label": info.label,
        "engine": info.engine,
        "state": info.state.text,
        "models": list(info.models),
        "requests_max": info.requests_max,
    }
