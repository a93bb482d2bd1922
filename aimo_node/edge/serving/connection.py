"""One consumer's connection: its reader task, the tasks of its requests, its deadline and its
end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from aimo_node.edge.serving.http1 import Http1Protocol
from aimo_node.edge.serving.inbox import Inbox
from aimo_node.edge.serving.owner import Phase
from aimo_node.edge.serving.refusal import TOO_SLOW
from aimo_node.edge.serving.state import ServingState
from aimo_node.edge.serving.task_root import report_failure
from aimo_node.edge.serving.transport import Transport


class HttpConnection:
    """Owns one connection from accept to close.

    `run` is its reader task; each request has a task below it, cancelled when the consumer is gone.
    Everything that ends a request is synchronous, so that no cancellation can leave the connection
    half recycled.
    """

    __slots__ = (
        "_charged_bytes",
        "_nursery",
        "_protocol",
        "_room",
        "_state",
        "client",
        "deadline",
        "inbox",
        "is_tls",
        "phase",
        "server",
        "transport",
    )

    _nursery: trio.Nursery  # while `run` runs

    def __init__(
        self,
        state: ServingState,
        transport: Transport,
        *,
        client: tuple[str, int],
        server: tuple[str, int],
        is_tls: bool,
    ) -> None:
        self.transport = transport
        self.client = client
        self.server = server
        self.is_tls = is_tls
        self.inbox: Inbox | None = None
        self.phase = Phase.FRESH
        self.deadline = state.now + state.limits.header_seconds
        self._state = state
        self._charged_bytes = 0
        self._room: trio.Event | None = None
        self._protocol = Http1Protocol(self, state)

    async def run(self) -> None:
        """Serves the connection until either side ends it. Never raises but for cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if await self.transport.handshake():
                    await self._read()
                self._protocol.consumer_left()
                self.abort()  # whoever writes stops now
                nursery.cancel_scope.cancel()
        except BaseException as error:  # noqa: BLE001 (task root: cancellation is raised again)
            report_failure(error, "http.connection_failed")
        finally:
            self._protocol.consumer_left()
            self.abort()
            self._state.connection_closed(self)

    def enter(self, phase: Phase) -> None:
        """Begins to wait for something else; the time for it begins now."""
        self.phase = phase
        self.deadline = self._state.now + self._state.seconds_for[phase]

    def expire(self) -> None:
        """The deadline has passed: says so where a request has begun, and closes."""
        if self.phase in {Phase.HEAD, Phase.BODY}:
            self._protocol.refuse(TOO_SLOW)
        else:
            self.abort()

    def finish(self) -> None:
        """Nothing more will be sent; closes once the consumer has read it or has had its time."""
        if self.phase is Phase.LINGER:
            return
        self.enter(Phase.LINGER)
        self._state.table.set_waiting(self)
        self.transport.finish()
        self.resume()

    def abort(self) -> None:
        """Closes at once; the reader notices and ends the requests."""
        self.transport.close()
        self.resume()

    def close_if_idle(self) -> None:
        """Closes a kept connection that has no request; one that never had any may be about to send
        its first."""
        if self.phase is Phase.IDLE:
            self.abort()

    def say_goodbye(self) -> None:
        """The server ends while a request still runs: tells a WebSocket, which has a word for
        it."""
        self._protocol.say_goodbye()

    @property
    def is_held(self) -> bool:
        """Whether reading is suspended."""
        return self._room is not None

    def hold(self) -> None:
        """Stops reading until `resume`: something is full."""
        if self._room is None and self.phase is not Phase.LINGER:
            self._room = trio.Event()

    def resume(self) -> None:
        """Goes on reading. Idempotent."""
        room, self._room = self._room, None
        if room is not None:
            room.set()

    def charge(self, held_bytes: int) -> bool:
        """Sets how much of a body or message is held for this connection; False when all together
        is too much."""
        state = self._state
        state.bodies_bytes += held_bytes - self._charged_bytes
        self._charged_bytes = held_bytes
        return state.bodies_bytes <= state.limits.bodies_bytes_max

    def spawn(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Starts a task that ends with the connection at the latest (also Hypercorn's way to ask
        for one)."""
        self._nursery.start_soon(function, *arguments)

    async def spawn_app(
        self,
        _app: object,
        _config: object,
        scope: dict[str, Any],
        send: Callable[[dict[str, Any] | None], Awaitable[None]],
    ) -> Callable[[dict[str, Any]], Awaitable[None]]:
        """Starts the application on a request; Hypercorn's streams call it. Returns where its
        messages go."""
        inbox = self.inbox = Inbox(self.resume)
        self.spawn(self._run_app, scope, inbox, send)
        return inbox.put

    async def _run_app(
        self,
        scope: dict[str, Any],
        inbox: Inbox,
        send: Callable[[dict[str, Any] | None], Awaitable[None]],
    ) -> None:
        try:
            await self._state.app(scope, inbox.receive, send)
        except BaseException as error:  # noqa: BLE001 (task root: cancellation is raised again)
            report_failure(error, "http.application_failed", path=scope["path"])
        await send(None)

    async def _read(self) -> None:
        receive = self.transport.receive
        while data := await receive():
            if self.phase is Phase.LINGER:
                continue
            await self._protocol.handle(data)
            while self._room is not None:
                await self._room.wait()
