"""The HTTP server: accepts within limits, sweeps what is overdue, drains within its time."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Protocol

import structlog
import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable

from aimo_node.edge.serving.connection import HttpConnection
from aimo_node.edge.serving.hypercorn_parts import Application, require_hypercorn
from aimo_node.edge.serving.lifespan import Lifespan
from aimo_node.edge.serving.limits import HttpBinding, HttpLimits
from aimo_node.edge.serving.listening import OUT_OF_FILES, open_listeners, url_of
from aimo_node.edge.serving.refusal import NO_ROOM
from aimo_node.edge.serving.state import ServingState
from aimo_node.edge.serving.tls import server_context
from aimo_node.edge.serving.transport import Transport
from aimo_node.errors import ConfigError

SWEEP_SECONDS = 0.25
"""How exact deadlines of seconds are kept; one sweep of 2,000 connections takes a fifth of a
millisecond."""
FINAL_WORDS_SECONDS = 1.0
"""After the grace period: for running streams to send their final error event."""
LAST_ROOM_AFTER_SECONDS = 0.05
"""After the end of the grace period is announced: a few turns of the scheduler under load."""
FAREWELL_SECONDS = 0.25
"""After the last answer: for consumers to read it before their connections are closed."""
SHUTDOWN_SECONDS = 1.75
"""After the grace period: when the application's shutdown hook is cut, so that all is over within
two seconds."""
SHUTDOWN_SECONDS_MIN = 0.25
"""What the shutdown hook has in any case."""
ACCEPTS_PER_CHECKPOINT = 32
"""A flood of connects must not keep running streams waiting."""

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
        context = _tls_context(binding)
        with contextlib.ExitStack() as listening:
            listeners = await open_listeners(binding, limits.write_stall_seconds)
            for listener in listeners:
                listening.callback(_close, listener)
            lifespan = Lifespan(app)
            async with trio.open_nursery() as background:
                background.start_soon(lifespan.run)
                if await lifespan.start():
                    state = ServingState(app, limits, lifespan.state)
                    background.start_soon(_sweep, state)
                    async with trio.open_nursery() as connections:
                        for listener in listeners:
                            connections.start_soon(_accept, listener, context, state, connections)
                        url = url_of(listeners[0], is_tls=context is not None)
                        log.info("http.listening", url=url)
                        task_status.started(url)
                        await drain.wait()
                        stop_at = trio.current_time() + grace_seconds + SHUTDOWN_SECONDS
                        await self._drain(state, grace_seconds)
                        listening.close()
                        await _say_farewell(state)
                        connections.cancel_scope.cancel()
                    await lifespan.stop(max(SHUTDOWN_SECONDS_MIN, stop_at - trio.current_time()))
                background.cancel_scope.cancel()
        lifespan.raise_failure()
        log.info("http.stopped", url=url)

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


def _tls_context(binding: HttpBinding) -> ssl.SSLContext | None:
    if binding.tls_cert is not None and binding.tls_key is not None:
        return server_context(binding.tls_cert, binding.tls_key)
    if binding.tls_cert is not None or binding.tls_key is not None:
        raise ConfigError("TLS needs both a certificate and its key")
    return None


async def _accept(
    listener: socket.socket,
    context: ssl.SSLContext | None,
    state: ServingState,
    connections: trio.Nursery,
) -> None:
    """Takes connections until the listener is closed."""
    server = listener.getsockname()[:2]
    accepted_count = 0
    while True:
        try:
            accepted, address = listener.accept()
        except BlockingIOError:
            try:
                await wait_readable(listener.fileno())
            except trio.ClosedResourceError:
                return
            continue
        except OSError as error:
            if listener.fileno() < 0:
                return
            if error.errno in OUT_OF_FILES:
                _make_room(state)
                await trio.sleep(SWEEP_SECONDS)
            else:
                await checkpoint()  # that consumer gave up already
            continue
        accepted_count += 1
        if _admit(accepted, address[0], context, state):
            connection = HttpConnection(
                state,
                Transport(accepted, context, state.limits.write_stall_seconds),
                client=address[:2],
                server=server,
                is_tls=context is not None,
            )
            state.table.add(connection, address[0])
            connections.start_soon(connection.run)
        if not accepted_count % ACCEPTS_PER_CHECKPOINT:
            await checkpoint()


def _admit(
    accepted: socket.socket, address: str, context: ssl.SSLContext | None, state: ServingState
) -> bool:
    """Makes room where it can; otherwise turns the newcomer away."""
    has_room = state.table.has_room_for(address)
    if has_room and state.table.is_full:
        has_room = _make_room(state)
        if not has_room and context is None:
            with contextlib.suppress(OSError):
                accepted.setblocking(False)  # noqa: FBT003 (the standard library's way)
                accepted.send(NO_ROOM.encode())
    if not has_room:
        state.refused += 1
        accepted.close()
    return has_room


def _make_room(state: ServingState) -> bool:
    """Closes the connection that has waited longest without a request; False when all have one."""
    oldest = state.table.waiting_longest()
    if oldest is None:
        return False
    state.table.remove(oldest)
    oldest.abort()
    state.refused += 1
    return True


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


def _close(listener: socket.socket) -> None:
    if listener.fileno() >= 0:
        notify_closing(listener.fileno())
        listener.close()
