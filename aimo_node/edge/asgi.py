"""The way of a request from the server to Quart and back, where Quart-trio's own needs help.

Quart-trio starts two tasks per request, sends a short response in three pieces, cancels the very
task that finishes a response when the server reports its end, and leaves a connection at once when
it refuses a body. Here the body is read first, by the task that then answers; one more task
watches for the consumer leaving. Quart's own time limits, which cut streams, do not apply.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import structlog
import trio
from quart import Response
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection

from aimo_node.edge.event_stream import EventStream
from aimo_node.edge.guard import Guard, too_large
from aimo_node.edge.problem import Problem, problem_of, respond_with
from aimo_node.edge.settings import EdgeSettings
from aimo_node.errors import CodedError, InternalError

CONSUMER: Final = "aimo.consumer"
"""Where in the scope a route finds the consumer's name."""

EVENTS: Final = "aimo.events"
"""Where in the scope a route leaves the `EventStream` that its connection has to close."""

LINGER_SECONDS: Final = 2.0
LINGER_BYTES_MAX: Final = 32 * 1024 * 1024
"""How much of a refused body is still read: closing at once makes the kernel reset the
connection, and the consumer may never see why it was refused."""

FAREWELL_SECONDS: Final = 0.75
"""How long the last event of a cut stream may take; a consumer that does not read misses it."""

DirectRoute: TypeAlias = Callable[[Any, bytes], Awaitable[Response]]
"""Answers a request from its ASGI scope and body, without Quart's context and dispatch."""
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]

log = structlog.get_logger(__name__)


class EdgeApp(QuartTrio):  # type: ignore[misc]
    """Quart-trio behind a guard."""

    def __init__(self, guard: Guard, settings: EdgeSettings) -> None:
        super().__init__(__name__, static_folder=None)
        self.direct_routes: dict[tuple[str, str], DirectRoute] = {}
        """By method and path: the hot route saves a third of a request's CPU this way."""
        self.guard = guard
        self.settings = settings
        self.asgi_http_class = HttpExchange
        self.asgi_websocket_class = SocketExchange
        # `//v1/models` is no route; redirecting would take a consumer's body along
        self.url_map.merge_slashes = False
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        self.config["MAX_CONTENT_LENGTH"] = None  # counted here, before Quart has a request

    def log_exception(self, exception_info: object) -> None:
        """A bug of ours, with its traceback."""
        log.error("request.crashed", exc_info=exception_info)


class HttpExchange(TrioASGIHTTPConnection):  # type: ignore[misc]
    """One request and its response; lives in one task, with one more that watches."""

    app: EdgeApp
    _is_last_sent = False

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Guard, read, answer."""
        scope: Any = self.scope
        try:
            scope[CONSUMER] = self.app.guard.admit(scope)
            body = await self._read_body(receive)
        except CodedError as error:
            await self._refuse(problem_of(error), receive, send)
            return
        if body is None:
            return
        try:
            await self._answer(body, receive, send)
        finally:
            events = scope.get(EVENTS)
            if events is not None:
                events.close()

    async def _read_body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the consumer left before its end."""
        settings = self.app.settings
        pieces: list[bytes] = []
        size = 0
        while True:  # how long a body may take is the server's business
            message = await receive()
            if message["type"] != "http.request":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > settings.body_bytes_max:
                raise too_large(settings.body_bytes_max)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def _answer(self, body: bytes, receive: Receive, send: Send) -> None:
        scope: Any = self.scope
        route = self.app.direct_routes.get((scope["method"], scope["path"]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive, nursery.cancel_scope)
            if route is None:
                request: Any = self._create_request_from_scope(send)
                request.body.set_result(body)
                response: Any = await self.app.handle_request(request)
            else:
                response = await self._answer_directly(route, body)
            await self._send(response, send)
            nursery.cancel_scope.cancel()

    async def _answer_directly(self, route: DirectRoute, body: bytes) -> Response:
        try:
            return await route(self.scope, body)
        except CodedError as error:
            return respond_with(problem_of(error))
        except Exception:  # the root of a request: its consumer hears of a bug
            log.exception("request.crashed")
            return respond_with(problem_of(InternalError("The node failed; its log says why.")))

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        """Cancel the answer when the consumer leaves, but never the end of a response.

        The server reports the end as a disconnect, too, before it makes the connection ready for
        the next request; cancelled there, it would stay open for ever.
        """
        while (await receive())["type"] == "http.request":
            pass
        if not self._is_last_sent:
            scope.cancel()

    async def _send(self, response: Response, send: Send) -> None:
        await send(_start(response.status_code, encode_headers(response.headers)))
        body = response.response
        last = b""
        if isinstance(body, EventStream):
            await self._send_events(body, send)
        elif isinstance(body, DataBody):
            last = body.data
        else:
            async with body as pieces:
                async for piece in pieces:
                    await send(_piece(piece))
        self._is_last_sent = True
        await send(_last(last))

    async def _send_events(self, events: EventStream, send: Send) -> None:
        with events.scope:
            async for data in events:
                await send(_piece(data))
        if events.scope.cancelled_caught:
            with trio.move_on_after(FAREWELL_SECONDS):
                await send(_piece(events.farewell()))

    async def _refuse(self, problem: Problem, receive: Receive, send: Send) -> None:
        """Answer without Quart, and read on a little so that the answer can be read."""
        body = problem.body
        await send(_start(problem.status, _refusal_headers(problem, body)))
        await send(_piece(body))
        with trio.move_on_after(LINGER_SECONDS):
            await _discard_body(receive)
        await send(_last(b""))


class SocketExchange(TrioASGIWebsocketConnection):  # type: ignore[misc]
    """One WebSocket, refused with a proper response if the guard says so."""

    app: EdgeApp

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Guard, then Quart."""
        scope: Any = self.scope
        try:
            scope[CONSUMER] = self.app.guard.admit(scope)
        except CodedError as error:
            problem = problem_of(error)
            await send(
                {
                    "type": "websocket.http.response.start",
                    "status": problem.status,
                    "headers": _refusal_headers(problem, problem.body),
                }
            )
            await send({"type": "websocket.http.response.body", "body": problem.body})
            return
        await super().__call__(receive, send)


async def _discard_body(receive: Receive) -> None:
    size = 0
    while size < LINGER_BYTES_MAX:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


def _refusal_headers(problem: Problem, body: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *((name.encode(), value.encode()) for name, value in problem.headers),
    ]


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def _piece(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _last(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": False}
