"""Fault: an exception in a stream's handler ends the connection, and can end the whole Swarm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

log = structlog.get_logger()

StreamHandler = Callable[[Any], Awaitable[None]]


def contain_errors(handler: StreamHandler) -> StreamHandler:
    """Wrap `handler` so that whatever it raises costs its own stream only."""

    async def contained(net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
        try:
            await handler(net_stream)
        except Exception as error:  # noqa: BLE001 (root of the stream's task; it is logged)
            await _give_up(net_stream, error)
        except BaseExceptionGroup as group:
            cancelled, others = group.split(trio.Cancelled)
            if others is not None:
                await _give_up(net_stream, others)
            if cancelled is not None:
                raise cancelled from None

    return contained


def contain_task_errors(task: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap a task of a libp2p service, which would end the service, the host and the node."""

    async def contained(*args: Any) -> None:  # noqa: ANN401
        try:
            await task(*args)
        except Exception:
            # Root of a task, as far as we are concerned.
            log.exception("task.failed", task=getattr(task, "__qualname__", repr(task)))

    return contained


async def _give_up(net_stream: Any, error: BaseException) -> None:  # noqa: ANN401
    log.error(
        "stream.failed",
        peer=str(net_stream.muxed_conn.peer_id),
        protocol=net_stream.get_protocol(),
        exc_info=error,
    )
    with trio.CancelScope(shield=True):
        await net_stream.reset()
