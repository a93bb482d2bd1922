"""Fault: libp2p's listener outlives a cancelled host, keeps one task and one slot for ever for
every connection it has accepted, and shares its port silently with a second node.

After as many connections as it allows at once – over its whole life – it accepts no more. This
listener lives in the host's nursery and ends what it began when the socket closes.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from aimo_node.mesh.fixes.connection_flood import ArrivalGate
from aimo_node.mesh.fixes.library import (
    TCP,
    IListener,
    Multiaddr,
    OpenConnectionError,
    RawConnection,
)
from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream
from aimo_node.mesh.fixes.tcp_addresses import socket_multiaddr, tcp_endpoint

log = structlog.get_logger()

_CONNECTS_MAX: Final = 10
_CONNECT_AGAIN_SECONDS: Final = 0.25
"""A peer that has not begun yet refuses. The two begin within a round trip of each other."""
_WORTH_ANOTHER_TRY: Final = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EADDRNOTAVAIL}
)
"""The last one: an earlier connection from there to there still waits for answers."""
_ABANDON_SECONDS: Final = 15.0
"""What is not confirmed for so long ends a connection from a chosen port. Links end sooner; but the
system would hold on to both ends for minutes, and there could be no other one between them."""

ConnectionHandler = Callable[[BufferedTcpStream], Awaitable[None]]

_BACKLOG: Final = 512
"""Connects the kernel keeps while a burst is being accepted."""


class TcpTransport(TCP):  # type: ignore[misc]
    """Dials and listens with `BufferedTcpStream`.

    Args:
        gate: who may come in.
        nursery: where listeners and accepted connections run; the host's.
    """

    def __init__(self, gate: ArrivalGate, nursery: trio.Nursery) -> None:
        super().__init__()
        self._gate = gate
        self._nursery = nursery
        self.listen_errors: dict[str, str] = {}
        """Why an address could not be listened on; libp2p only says that it could not."""

    async def dial(self, maddr: Multiaddr) -> RawConnection:
        """Connect to an address of the form ``/ip4/…/tcp/…``; names were resolved before."""
        try:
            stream = await _connect(*tcp_endpoint(maddr))
        except OSError as error:
            raise OpenConnectionError(error.strerror or str(error)) from error
        return RawConnection(BufferedTcpStream(stream), True)  # noqa: FBT003 (libp2p's signature)

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> RawConnection:
        """As `dial`, from the local address and port of a connection that lives: the routers on the
        way then see it as coming from where that one comes from. Also called by libp2p.

        The far end does the same; who is refused is too early, and tries again.
        """
        problem = OSError()
        for _ in range(_CONNECTS_MAX):
            try:
                stream = await _connect(*tcp_endpoint(maddr), source)
            except OSError as error:
                if error.errno not in _WORTH_ANOTHER_TRY:
                    raise OpenConnectionError(error.strerror or str(error)) from error
                problem = error
                await trio.sleep(_CONNECT_AGAIN_SECONDS)
            else:
                return RawConnection(BufferedTcpStream(stream), True)  # noqa: FBT003 (libp2p's)
        raise OpenConnectionError(f"{problem.strerror}, again and again") from problem

    def create_listener(self, handler_function: ConnectionHandler) -> TcpListener:
        """A listener that hands every admitted connection to libp2p's `handler_function`."""
        return TcpListener(handler_function, self._gate, self._nursery, self.listen_errors)


class TcpListener(IListener):  # type: ignore[misc]
    """One listening socket, and the connections that came through it."""

    def __init__(
        self,
        handler: ConnectionHandler,
        gate: ArrivalGate,
        nursery: trio.Nursery,
        errors: dict[str, str],
    ) -> None:
        self._handler = handler
        self._gate = gate
        self._nursery = nursery
        self._errors = errors
        self._listeners: list[trio.SocketListener] = []
        self._accepting = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        """Bind and start accepting.

        Raises:
            OpenConnectionError: the address cannot be bound.
        """
        try:
            listener = await _bind(*tcp_endpoint(maddr))
        except (OSError, OpenConnectionError) as error:
            self._errors[str(maddr)] = f"cannot listen on {maddr}: {error}"
            raise OpenConnectionError(self._errors[str(maddr)]) from error
        self._listeners.append(listener)
        self._nursery.start_soon(self._accept_all, listener)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """The addresses in use, with the ports the system chose."""
        return tuple(
            socket_multiaddr(*listener.socket.getsockname()[:2]) for listener in self._listeners
        )

    async def close(self) -> None:
        """Stop accepting. Accepted connections are not touched."""
        self._accepting.cancel()
        for listener in self._listeners:
            listener.socket.close()
        self._listeners.clear()
        await trio.lowlevel.checkpoint()

    async def _accept_all(self, listener: trio.SocketListener) -> None:
        with self._accepting:
            # Waits and goes on by itself while the process is out of descriptors.
            await trio.serve_listeners(self._serve, [listener], handler_nursery=self._nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        tcp = BufferedTcpStream(stream)
        remote = tcp.get_remote_address()
        arrival = self._gate.admit(remote[0], tcp) if remote is not None else None
        if arrival is None:
            tcp.close_now()
            return
        with trio.CancelScope() as scope:
            # libp2p's handler never returns by itself, not even when the connection is over.
            tcp.on_closed = scope.cancel
            tcp.on_upgraded = lambda: self._gate.establish(arrival)
            try:
                await self._handler(tcp)
            except Exception:
                # Root of the connection's task: libp2p's own handler lets nothing out, so this
                # is a bug; it must not end the host.
                log.exception("connection.failed", address=remote)
            finally:
                tcp.close_now()
                self._gate.leave(arrival)


def _family(host: str) -> stdlib_socket.AddressFamily:
    return stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET


async def _connect(
    host: str, port: int, source: tuple[str, int] | None = None
) -> trio.SocketStream:
    connecting = trio.socket.socket(_family(host), stdlib_socket.SOCK_STREAM)
    try:
        # On Linux several connections may leave from one port that nobody listens on if all have
        # said this beforehand: so holes are punched from the port of the connection to a relay.
        connecting.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if source is not None:
            _abandon_soon(connecting)
            await connecting.bind(source)
        await connecting.connect((host, port))
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


def _abandon_soon(connecting: trio.socket.SocketType) -> None:
    if hasattr(stdlib_socket, "TCP_USER_TIMEOUT"):  # on Linux
        milliseconds = int(_ABANDON_SECONDS * 1000)
        connecting.setsockopt(
            stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_USER_TIMEOUT, milliseconds
        )


async def _bind(host: str, port: int) -> trio.SocketListener:
    family = _family(host)
    listening = trio.socket.socket(family, stdlib_socket.SOCK_STREAM)
    try:
        listening.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if family == stdlib_socket.AF_INET6:
            listening.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
        await listening.bind((host, port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return trio.SocketListener(listening)
