"""The node's HTTP door: the edge's application, or health and numbers only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import trio

from aimo_node.config.settings import Settings
from aimo_node.dispatch.inference import InferenceDoor
from aimo_node.dispatch.registration import EndpointRegistry
from aimo_node.edge.app import create_app, create_health_app
from aimo_node.edge.auth import read_client_keys
from aimo_node.edge.health import Vitals
from aimo_node.edge.serving.limits import HttpBinding, HttpLimits
from aimo_node.edge.serving.server import HttpServer, StartReport
from aimo_node.edge.settings import DrainSignals, EdgeSettings, allowed_hosts_for
from aimo_node.telemetry.metrics import NodeMetrics


@dataclass(frozen=True, slots=True)
class Door:
    """What stands behind the door.

    Attributes:
        inference: where requests go; None serves health and numbers only.
        endpoints: adds endpoints to this node; None offers no such route.
        closing: set when the node takes no new requests.
    """

    settings: Settings
    vitals: Vitals
    metrics: NodeMetrics
    closing: trio.Event
    inference: InferenceDoor | None = None
    endpoints: EndpointRegistry | None = None

    async def serve(self, task_status: StartReport = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `closing` is set and running requests have ended or the grace is over.

        Raises:
            ConfigError: address, certificate or keys file cannot be used.
        """
        edge = self.settings.edge
        bind = edge.http_bind
        if bind is None:
            raise ValueError("no HTTP door is configured")
        server = HttpServer()
        limits = HttpLimits()
        if edge.behind_proxy:  # every consumer comes from the proxy's address
            limits = replace(limits, connections_per_address_max=limits.connections_max)
        if self.inference is None:
            app = create_health_app(self._edge_settings(bind[0], limits), self.vitals)
        else:
            app = create_app(
                self.inference,
                self._edge_settings(bind[0], limits),
                vitals=self.vitals,
                drain=DrainSignals(begun=self.closing, grace_over=server.grace_over),
                metrics=self.metrics.edge,
                endpoints=self.endpoints,
            )
        await server.serve(
            app,
            HttpBinding(bind[0], bind[1], edge.tls_cert, edge.tls_key),
            limits,
            drain=self.closing,
            grace_seconds=self.settings.node.grace_seconds,
            task_status=task_status,
        )

    def _edge_settings(self, host: str, limits: HttpLimits) -> EdgeSettings:
        edge = self.settings.edge
        keys = read_client_keys(edge.client_keys_file) if edge.client_keys_file else frozenset()
        return EdgeSettings(
            api_keys=keys,
            behind_proxy=edge.behind_proxy,
            allowed_hosts=allowed_hosts_for(
                host, edge.allowed_hosts, keyed=bool(keys), behind_proxy=edge.behind_proxy
            ),
            request_deadline_seconds=edge.request_deadline_seconds,
            body_bytes_max=limits.body_bytes_max,
            socket_message_bytes_max=limits.websocket_message_bytes_max,
        )
