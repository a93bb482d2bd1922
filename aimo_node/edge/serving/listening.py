"""Listening sockets: where, with which options, and accepting from them."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import trio

from aimo_node.edge.serving.limits import HttpBinding
from aimo_node.edge.serving.transport import SEND_BUFFER_BYTES
from aimo_node.errors import ConfigError

BACKLOG = 2048
"""Connects the kernel completes while the loop is busy: a thousand streams that start at one moment
fit."""
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3
"""A machine that vanished without a word is noticed after a minute, so its requests do not run on
for hours."""
OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What `accept` raises until another connection is closed."""


async def open_listeners(binding: HttpBinding, write_stall_seconds: float) -> list[socket.socket]:
    """Binds and listens on every address the host stands for, all on the same port.

    Raises:
        ConfigError: no such host, or the address is taken or not allowed.
    """
    place = f"{binding.host}:{binding.port}"
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        try:
            found = await trio.socket.getaddrinfo(
                binding.host, binding.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            port = binding.port
            for family, _, _, _, address in found:
                listener = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                _set_options(listener, family, write_stall_seconds)
                listener.bind((address[0], port, *address[2:]))
                listener.listen(BACKLOG)
                listener.setblocking(False)  # noqa: FBT003 (the standard library's way)
                port = listener.getsockname()[1]
                listeners.append(listener)
        except OSError as error:  # socket.gaierror is one
            reason = error.strerror or str(error)
            raise ConfigError(f"cannot listen on http {place}: {reason}") from error
        opened.pop_all()
    return listeners


def url_of(listener: socket.socket, *, is_tls: bool) -> str:
    """What a consumer on this machine has to type."""
    host, port = listener.getsockname()[:2]
    if listener.family == socket.AF_INET6:
        host = f"[{host}]"
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def _set_options(listener: socket.socket, family: int, write_stall_seconds: float) -> None:
    """Options that accepted sockets inherit, so that they cost nothing per connection."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    where_known: dict[str, Any] = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_SECONDS,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_SECONDS,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        # What was sent and is not acknowledged: a consumer that was unplugged, where heartbeats are
        # small enough never to fill the kernel's buffer.
        "TCP_USER_TIMEOUT": int(write_stall_seconds * 1000),
    }
    for name, value in where_known.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
