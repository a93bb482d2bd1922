"""Takes connections within the limits on their number; closes or refuses what is too much."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl

import trio
from trio.lowlevel import checkpoint, wait_readable

from aimo_node.edge.serving.connection import HttpConnection
from aimo_node.edge.serving.refusal import NO_ROOM
from aimo_node.edge.serving.state import ServingState
from aimo_node.edge.serving.transport import Transport

ACCEPTS_PER_CHECKPOINT = 32
"""A flood of connects must not keep running streams waiting."""
OUT_OF_FILES_PAUSE_SECONDS = 0.25
"""For the connection that makes room to be closed; others may end meanwhile, too."""
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def accept_connections(
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
            if error.errno in _OUT_OF_FILES:
                _make_room(state)
                await trio.sleep(OUT_OF_FILES_PAUSE_SECONDS)
            else:
                await checkpoint()  # that consumer gave up already
            continue
        accepted_count += 1
        if admit(accepted, address[0], context, state):
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


def admit(
    accepted: socket.socket, address: str, context: ssl.SSLContext | None, state: ServingState
) -> bool:
    """Whether a newcomer may stay: makes room where it can, and closes the newcomer otherwise."""
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
