"""What is taken from Hypercorn, of which version, and how it is set up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from aimo_node.edge.serving.limits import HttpLimits
from aimo_node.errors import StartError

HYPERCORN_VERSION = "0.18.0"
"""Its stream classes are subclassed, and they promise nothing to subclasses: another version has to
be read first."""

AsgiMessage = dict[str, Any]
Application = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]],
    Awaitable[None],
]
"""An ASGI application. Quart's own type names more message types than a server needs to know."""


def require_hypercorn() -> None:
    """Refuses to serve with a Hypercorn that nobody has looked into.

    Raises:
        StartError: another version is installed.
    """
    installed = version("hypercorn")
    if installed != HYPERCORN_VERSION:
        raise StartError(
            f"hypercorn {installed} is installed, but only {HYPERCORN_VERSION} is known to work:"
            f" pip install hypercorn=={HYPERCORN_VERSION}"
        )


def hypercorn_config(limits: HttpLimits) -> Config:
    """The settings its stream classes read."""
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.websocket_max_message_size = limits.websocket_message_bytes_max
    # Three unanswered pings before the silence counts as the end.
    config.websocket_ping_interval = limits.websocket_silence_seconds / 3
    return config


def worker_context() -> WorkerContext:
    """The clock and events its stream classes use; no limit on requests per worker."""
    return WorkerContext(None)
