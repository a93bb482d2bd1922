"""``/v1/providers/register``: adds endpoints to this node, for whoever asks from this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import asdict

from aimo_node.dispatch.registration import EndpointRegistry, NewEndpoint, RegisteredEndpoint
from aimo_node.edge.json_body import check
from aimo_node.edge.settings import EdgeSettings, is_loopback
from aimo_node.errors import InvalidRequest, PermissionDenied, ProviderNotFound

CREATED: Final = 201
ACCEPTED: Final = 202
_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""A request with one of these came through a proxy, from who knows where."""


class Registration(Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/providers/register``."""

    endpoint: str
    engine: str = "openai"
    label: str = ""
    api_key: str = ""
    model: str = ""
    models: dict[str, str] = field(default_factory=dict)
    served_name: str = ""
    requests_max: int = 0


class RegistrationDesk:
    """Checks who asks and what, and passes it on."""

    def __init__(self, endpoints: EndpointRegistry, settings: EdgeSettings) -> None:
        self._endpoints = endpoints
        self._behind_proxy = settings.behind_proxy

    async def register(
        self, scope: Mapping[str, Any], value: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Add an endpoint; 201 when it answers, 202 while it is still being tried.

        Raises:
            PermissionDenied: not from this machine.
            InvalidRequest: a field does not fit, or the endpoint does not work.
        """
        self._check_local(scope)
        wanted = check(value, Registration)
        if not wanted.endpoint:
            raise InvalidRequest(
                "endpoint must be a URL such as http://127.0.0.1:8001/v1", param="endpoint"
            )
        added = await self._endpoints.register(NewEndpoint(**asdict(wanted)))
        return CREATED if added.state == "running" else ACCEPTED, _view(added)

    def registered(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """What was added.

        Raises:
            PermissionDenied: not from this machine.
        """
        self._check_local(scope)
        return {"object": "list", "data": [_view(one) for one in self._endpoints.registered()]}

    async def remove(self, scope: Mapping[str, Any], label: str) -> dict[str, Any]:
        """Take an endpoint away.

        Raises:
            PermissionDenied: not from this machine.
            ProviderNotFound: there is none of that label.
        """
        self._check_local(scope)
        if not await self._endpoints.remove(label):
            raise ProviderNotFound(
                f"No endpoint {label!r} was added here; GET /v1/providers/register lists them."
            )
        return {"id": label, "object": "endpoint", "deleted": True}

    def _check_local(self, scope: Mapping[str, Any]) -> None:
        client = scope.get("client")
        is_forwarded = any(name in _FORWARDED for name, _ in scope.get("headers", ()))
        is_local = client is not None and is_loopback(client[0])
        if self._behind_proxy or is_forwarded or not is_local:
            raise PermissionDenied("Endpoints are added from the machine the edge runs on only.")


def _view(endpoint: RegisteredEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.label,
        "object": "endpoint",
        "engine": endpoint.engine,
        "endpoint": endpoint.endpoint,
        "state": endpoint.state,
        "models": list(endpoint.models),
        "detail": endpoint.detail,
    }
