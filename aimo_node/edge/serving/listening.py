"""Listening sockets: where, with which options, and accepting from them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import trio

from aimo_node.edge.serving.limits import HttpBinding
from aimo_node.edge.serving.tls import server_context
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


@dataclass(frozen=True, slots=True)
class Listening:
    """Open listening sockets, all on the same port.

    Attributes:
        tls: the context for what they accept, if it is to be TLS.
        url: what a consumer on this machine has to type.
    """

    listeners: tuple[socket.socket, ...]
    tls: ssl.SSLContext | None
    url: str

    def close(self) -> None:
        """Accepts nothing more; who waits to accept is woken. Idempotent."""
        for listener in self.listeners:
            if listener.fileno() >= 0:
                trio.lowlevel.notify_closing(listener.fileno())
                listener.close()


@contextlib.asynccontextmanager
async def open_listening(
    binding: HttpBinding, write_stall_seconds: float
) -> AsyncIterator[Listening]:
    """Binds and listens on every address the host stands for; closes at the end.

    Raises:
        ConfigError: the certificate cannot be used, there is no such host, or the address is taken
            or not allowed.
    """
    tls = _tls_context(binding)
    found = await _resolve(binding)
    listeners: list[socket.socket] = []
    port = binding.port
    try:
        for family, address in found:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            _set_options(listener, family, write_stall_seconds)
            listener.bind((address[0], port, *address[2:]))
            listener.listen(BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 (the standard library's way)
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _refused(binding, error) from error
    listening = Listening(tuple(listeners), tls, _url_of(listeners[0], is_tls=tls is not None))
    try:
        yield listening
    finally:
        listening.close()


def _url_of(listener: socket.socket, *, is_tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    if listener.family == socket.AF_INET6:
        host = f"[{host}]"
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


async def _resolve(binding: HttpBinding) -> list[tuple[int, Any]]:
    try:
        found = await trio.socket.getaddrinfo(
            binding.host, binding.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:  # socket.gaierror is one
        raise _refused(binding, error) from error
    return [(family, address) for family, _, _, _, address in found]


def _refused(binding: HttpBinding, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(
        f"cannot listen on http {binding.host}:{binding.port}: {reason}; "
        "choose another address with --http HOST:PORT"
    )


def _tls_context(binding: HttpBinding) -> ssl.SSLContext | None:
    if binding.tls_cert is not None and binding.tls_key is not None:
        return server_context(binding.tls_cert, binding.tls_key)
    if binding.tls_cert is not None or binding.tls_key is not None:
        raise ConfigError("TLS needs both a certificate and its key")
    return None


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
