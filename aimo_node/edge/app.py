"""The edge's application: its routes, and nothing of what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from quart import Response, has_request_context, request, websocket
from werkzeug.exceptions import HTTPException

from aimo_node.dispatch.inference import InferenceDoor
from aimo_node.dispatch.registration import EndpointRegistry
from aimo_node.edge.asgi import CONSUMER, EdgeApp
from aimo_node.edge.guard import Guard
from aimo_node.edge.health import Vitals, add_health_routes
from aimo_node.edge.inference import Desk
from aimo_node.edge.json_body import decode_object
from aimo_node.edge.metrics import EdgeMetrics, NoMetrics
from aimo_node.edge.native.providers import provider_list
from aimo_node.edge.native.registration import RegistrationDesk
from aimo_node.edge.native.request import read_native, read_provider
from aimo_node.edge.native.stream_socket import StreamSocket
from aimo_node.edge.openai.catalogue import model_list, one_model
from aimo_node.edge.openai.chat import ChatDesk, read_call
from aimo_node.edge.problem import problem_of, problem_of_http, respond_with
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.errors import CodedError


def wall_clock() -> int:
    """Seconds since the epoch."""
    return time.time_ns() // 1_000_000_000


def create_app(  # noqa: PLR0913 (what stands behind a door, each by its name)
    door: InferenceDoor,
    settings: EdgeSettings,
    *,
    vitals: Vitals | None = None,
    drain: DrainSignals | None = None,
    metrics: EdgeMetrics | None = None,
    endpoints: EndpointRegistry | None = None,
    now: Callable[[], int] = wall_clock,
) -> EdgeApp:
    """The application of an edge.

    Args:
        door: where requests go.
        vitals: whether the node has joined its mesh, and its numbers.
        drain: set by the node when it goes away; see `DrainSignals`.
        metrics: told of each request.
        endpoints: adds endpoints to this node, for whoever asks from this machine.
        now: seconds since the epoch.
    """
    vitals = vitals or Vitals()
    drain = drain or DrainSignals()
    desk = Desk(door, settings, drain, metrics or NoMetrics())
    app = _bare_app(settings)
    has_joined = vitals.is_ready
    add_health_routes(app, replace(vitals, is_ready=lambda: has_joined() and not desk.draining))
    _add_catalogue_routes(app, door, now())
    _add_inference_routes(app, ChatDesk(desk, now))
    if endpoints is not None:
        _add_registration_routes(app, RegistrationDesk(endpoints, settings))

    async def watch_drain() -> None:
        app.nursery.start_soon(desk.cut_after_grace)

    app.before_serving(watch_drain)
    return app


def create_health_app(settings: EdgeSettings, vitals: Vitals) -> EdgeApp:
    """The application of a relay or provider: health and numbers, and no way to ask anything."""
    app = _bare_app(settings)
    add_health_routes(app, vitals)
    return app


def _bare_app(settings: EdgeSettings) -> EdgeApp:
    app = EdgeApp(Guard(settings), settings)

    async def on_coded(error: CodedError) -> Response:
        return respond_with(problem_of(error))

    async def on_http(error: HTTPException) -> Response:
        asked: Any = request if has_request_context() else websocket
        return respond_with(problem_of_http(error, asked.method, asked.path))

    app.register_error_handler(CodedError, on_coded)
    app.register_error_handler(HTTPException, on_http)
    return app


def _add_catalogue_routes(app: EdgeApp, door: InferenceDoor, started: int) -> None:
    async def models() -> Response:
        return _json(model_list(door, started))

    async def model(name: str) -> Response:
        return _json(one_model(door, name, started))

    async def providers() -> Response:
        return _json(provider_list(door))

    app.add_url_rule("/v1/models", view_func=models)
    app.add_url_rule("/v1/models/<path:name>", view_func=model)
    app.add_url_rule("/v1/providers", view_func=providers)


def _add_inference_routes(app: EdgeApp, chat: ChatDesk) -> None:
    async def chat_directly(scope: Any, body: bytes) -> Response:  # noqa: ANN401 (ASGI)
        call = read_call(decode_object(body))
        return await chat.respond(scope, call, scope[CONSUMER])

    async def chat_completions() -> Response:
        body: Any = await request.get_data()
        return await chat_directly(request.scope, body)

    async def native_request(provider: str) -> Response:
        scope: Any = request.scope
        peer = read_provider(provider)
        call = read_native(decode_object(await request.get_data()))
        return await chat.respond(scope, call, scope[CONSUMER], peer)

    async def stream_socket() -> None:
        asked = websocket._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        await StreamSocket(chat, asked, asked.scope[CONSUMER]).serve()

    app.add_url_rule("/v1/chat/completions", view_func=chat_completions, methods=["POST"])
    app.direct_routes["POST", "/v1/chat/completions"] = chat_directly
    app.add_url_rule("/v1/request/<provider>", view_func=native_request, methods=["POST"])
    app.add_websocket("/v1/stream", view_func=stream_socket)


def _add_registration_routes(app: EdgeApp, desk: RegistrationDesk) -> None:
    async def register() -> Response:
        body: Any = await request.get_data()
        status, answer = await desk.register(request.scope, decode_object(body))
        return _json(answer, status)

    async def registered() -> Response:
        return _json(desk.registered(request.scope))

    async def remove(label: str) -> Response:
        return _json(await desk.remove(request.scope, label))

    path = "/v1/providers/register"
    app.add_url_rule(path, "register", view_func=register, methods=["POST"])
    app.add_url_rule(path, "registered", view_func=registered, methods=["GET"])
    app.add_url_rule(f"{path}/<label>", "remove", view_func=remove, methods=["DELETE"])


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")
