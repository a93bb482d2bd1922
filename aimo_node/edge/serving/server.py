"""The HTTP server: accepts within limits, sweeps what is overdue, drains within its time."""

from __future__ import annotations

from typing import Protocol

import structlog
import trio

from aimo_node.edge.serving.accepting import accept_connections
from aimo_node.edge.serving.hypercorn_parts import Application, require_hypercorn
from aimo_node.edge.serving.lifespan import Lifespan
from aimo_node.edge.serving.limits import HttpBinding, HttpLimits
from aimo_node.edge.serving.listening import Listening, open_listening
from aimo_node.edge.serving.state import ServingState

SWEEP_SECONDS = 0.25
"""How exact deadlines of seconds are kept; one sweep of 2,000 connections takes a fifth of a
millisecond."""
FINAL_WORDS_SECONDS = 1.0
"""After the grace period: for running streams to send their final error event."""
LAST_ROOM_AFTER_SECONDS = 0.05
"""After the end of the grace period is announced: a few turns of the scheduler under load."""
FAREWELL_SECONDS = 0.25
"""After the last answer: for consumers to read it before their connections are closed."""
SHUTDOWN_SECONDS = 0.5
"""For the application's shutdown hook: all is over within two seconds of the grace period."""

log = structlog.get_logger(__name__)


class StartReport(Protocol):
    """Where `serve` says that it is ready (what `trio.Nursery.start` gives it)."""

    def started(self, value: str) -> None:
        """Takes the URL."""


class HttpServer:
    """Serves one ASGI application on one binding.

    Attributes:
        grace_over: set when a drain's grace period is over and requests still run. They have a
            second left to send a final error event, even to a consumer that does not read; then
            they are cancelled and their connections closed.
    """

    def __init__(self) -> None:
        self.grace_over = trio.Event()

    async def serve(
        self,
        app: Application,
        binding: HttpBinding,
        limits: HttpLimits,
        *,
        drain: trio.Event,
        grace_seconds: float,
        task_status: StartReport = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until `drain` is set and what then runs is over, at most `grace_seconds` and two
        more.

        During the drain new requests are still answered, by the application, which refuses them;
        idle connections are closed, and every answer is the last one on its connection. An
        application task is cancelled when its consumer leaves.

        Args:
            app: the ASGI application; its lifespan hooks run before the first and after the last
                request.
            binding: where to listen.
            limits: every bound.
            drain: set it to stop.
            grace_seconds: how long running requests may go on.
            task_status: started with the URL, which has the real port.

        Raises:
            ConfigError: the address or the certificate cannot be used.
            StartError: the application's start-up hook failed, or Hypercorn has another version.
        """
        require_hypercorn()
        async with open_listening(binding, limits.write_stall_seconds) as listening:
            lifespan = Lifespan(app)
            async with trio.open_nursery() as background:
                background.start_soon(lifespan.run)
                if await lifespan.start():
                    state = ServingState(app, limits, lifespan.state)
                    background.start_soon(_sweep, state)
                    log.info("http.listening", url=listening.url)
                    task_status.started(listening.url)
                    await self._serve_until(drain, listening, state, grace_seconds)
                    await lifespan.stop(SHUTDOWN_SECONDS)
                background.cancel_scope.cancel()
        lifespan.raise_failure()
        log.info("http.stopped", url=listening.url)

    async def _serve_until(
        self, drain: trio.Event, listening: Listening, state: ServingState, grace_seconds: float
    ) -> None:
        async with trio.open_nursery() as connections:
            for listener in listening.listeners:
                connections.start_soon(
                    accept_connections, listener, listening.tls, state, connections
                )
            await drain.wait()
            await self._drain(state, grace_seconds)
            listening.close()
            await _say_farewell(state)
            connections.cancel_scope.cancel()

    async def _drain(self, state: ServingState, grace_seconds: float) -> None:
        """Returns when nothing runs any more, or nothing may."""
        state.begin_drain()
        log.info("http.draining", running=state.running, connections=len(state.table))
        for connection in state.table:
            connection.close_if_idle()
        with trio.move_on_after(grace_seconds):
            await state.all_done.wait()
        if state.all_done.is_set():
            return
        log.warning("http.grace_over", running=state.running)
        self.grace_over.set()
        # First the streams stop, then those that wait get room: it is for their last words only.
        await trio.sleep(LAST_ROOM_AFTER_SECONDS)
        for connection in state.table:
            connection.transport.widen_if_stalled()
        with trio.move_on_after(FINAL_WORDS_SECONDS):
            await state.all_done.wait()


async def _sweep(state: ServingState) -> None:
    """Ends what is overdue."""
    while True:
        await trio.sleep(SWEEP_SECONDS)
        state.tick()
        now = state.now
        for connection in state.table:
            if connection.deadline < now:
                connection.expire()
            elif connection.is_held and connection.transport.has_hung_up():
                connection.abort()
        if state.refused:
            log.warning("http.connections_refused", count=state.refused)
            state.refused = 0


async def _say_farewell(state: ServingState) -> None:
    """Lets the last answers be read, then says to WebSockets that still run that it is over."""
    for connection in state.table:
        connection.say_goodbye()
    if state.table:
        state.all_closed = trio.Event()
        with trio.move_on_after(FAREWELL_SECONDS):
            await state.all_closed.wait()
    for connection in state.table:
        connection.abort()
