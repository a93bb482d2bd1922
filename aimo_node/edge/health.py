"""Whether the node lives, whether it should get traffic, and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from quart import Response

from aimo_node import __version__
from aimo_node.edge.asgi import EdgeApp

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the node tells of itself.

    Attributes:
        is_ready: whether requests should come here: joined, engine running, not going away.
        metrics_text: the node's numbers in Prometheus' text format.
    """

    is_ready: Callable[[], bool] = lambda: True
    metrics_text: Callable[[], bytes] = lambda: b""


def add_health_routes(app: EdgeApp, vitals: Vitals) -> None:
    """Add ``/v1/health``, ``/readyz`` and ``/metrics``."""

    async def health() -> Response:
        return _json({"status": "ok", "ready": vitals.is_ready(), "version": __version__}, 200)

    async def readiness() -> Response:
        ready = vitals.is_ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def metrics() -> Response:
        return Response(vitals.metrics_text(), content_type=METRICS_CONTENT_TYPE)

    app.add_url_rule("/v1/health", view_func=health)
    app.add_url_rule("/readyz", view_func=readiness)
    app.add_url_rule("/metrics", view_func=metrics)


def _json(value: dict[str, object], status: int) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")
