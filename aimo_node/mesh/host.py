"""The libp2p host: listening, dialling, and one protocol on top, `/aimo/link/1`.

Everything libp2p does wrong is dealt with in `fixes/`; nothing above this file sees libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import ConfigError, NetworkError
from aimo_node.mesh.exception_groups import only_leaf
from aimo_node.mesh.fixes.background_work import ReticentHost
from aimo_node.mesh.fixes.circuit_stream import CircuitStream
from aimo_node.mesh.fixes.connection_flood import ArrivalGate
from aimo_node.mesh.fixes.direct_dial import LIBRARY_ERRORS, race_addresses
from aimo_node.mesh.fixes.handler_errors import contain_errors
from aimo_node.mesh.fixes.library import (
    ID,
    ConnectionConfig,
    ConnectionType,
    Multiaddr,
    PeerStore,
    RawConnection,
    RetryConfig,
    Swarm,
    ed25519_key_pair,
)
from aimo_node.mesh.fixes.limits import HostLimits
from aimo_node.mesh.fixes.muxer_choice import accept_ed25519_only, build_upgrader
from aimo_node.mesh.fixes.protocol_names import NameReader
from aimo_node.mesh.fixes.tcp_addresses import candidates, expand_wildcards, parse_multiaddr
from aimo_node.mesh.fixes.tcp_listening import TcpTransport
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.unlinked import UnlinkedConnections

log = structlog.get_logger()

__all__ = ["LINK_PROTOCOL", "HostLimits", "LinkStream", "MeshHost"]

LINK_PROTOCOL: Final = "/aimo/link/1"
DIRECT: Final = "direct"
CIRCUIT: Final = "circuit"

_SWEEPS_PER_PERIOD: Final = 4
"""A connection without a link is closed at most a quarter too late."""

_SHUTDOWN_SECONDS_MAX: Final = 2.0
_CONNECTIONS_PER_PEER_MAX: Final = 4
"""Two after a simultaneous dial; a dead one or two may linger after a change of networks."""

_NOWHERE: Final = Multiaddr("/p2p-circuit")
"""What libp2p is told of where the far end of a circuit is: it only logs it."""

OnStream = Callable[[LinkStream], Awaitable[None]]


class MeshHost:
    """Owns the libp2p host; an async context manager.

    Args:
        identity: the node's key pair.
        listen: multiaddresses to listen on, ``/ip4/…/tcp/…``; may be empty.
        limits: what strangers and peers may cost.
        protocol: the protocol of links.
        on_stream: called in a task of its own with every stream a peer opens. When it returns
            the stream is closed; when it raises, that is logged and the stream is reset.
    """

    def __init__(
        self,
        identity: KeyPair,
        listen: Sequence[str],
        *,
        limits: HostLimits,
        protocol: str = LINK_PROTOCOL,
        on_stream: OnStream,
    ) -> None:
        self.peer_id = identity.peer_id
        self._identity = identity
        self._listen = listen
        self._limits = limits
        self._protocol = protocol
        self._on_stream = on_stream
        self._stack = AsyncExitStack()
        self._dialing: dict[PeerId, trio.Event] = {}
        self._nursery: trio.Nursery
        self._swarm: Swarm
        self._host: ReticentHost

    async def __aenter__(self) -> MeshHost:
        """Start listening.

        Raises:
            ConfigError: an address is malformed or cannot be listened on.
        """
        try:
            await self._start([_parse_listen(text) for text in self._listen])
        except BaseExceptionGroup as group:
            # The nurseries wrap what went wrong; the caller wants to catch it.
            raise only_leaf(group) or group from None
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._stack.__aexit__(exc_type, exc_val, exc_tb)
        except BaseExceptionGroup as group:
            if exc_val is not None and only_leaf(group) is exc_val:
                return False  # nothing but the body's own exception, which goes on as it was
            raise

    async def _start(self, addresses: Sequence[Multiaddr]) -> None:
        async with AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(self._nursery.cancel_scope.cancel)
            transport = TcpTransport(ArrivalGate(self._limits), self._nursery)
            self._swarm = self._build_swarm(transport)
            self._host = ReticentHost(self._swarm)
            self._swarm.set_stream_handler(contain_errors(self._host.serve))
            self.serve(self._protocol, self._on_stream)
            await stack.enter_async_context(self._host.run([]))
            stack.push_async_callback(self._close_everything)
            for address in addresses:
                if not await self._swarm.listen(address):
                    not_tcp = f"{address} is no TCP address, such as /ip4/0.0.0.0/tcp/4001"
                    reason = transport.listen_errors.get(str(address), not_tcp)
                    raise ConfigError(f"{reason}; choose another address with --listen")
            self._nursery.start_soon(self._sweep_unlinked)
            self._stack = stack.pop_all()

    def addresses(self) -> list[str]:
        """Full multiaddresses, ``…/p2p/PEER``; wildcards expanded, loopback last."""
        bound = [
            address
            for listener in self._swarm.listeners.values()
            for address in listener.get_addrs()
        ]
        return [f"{address}/p2p/{self.peer_id}" for address in expand_wildcards(bound)]

    def connected_peers(self) -> list[PeerId]:
        """Everybody with at least one connection; not all of them need have a link."""
        return [
            PeerId(peer_id.to_base58())
            for peer_id in self._swarm.connections
            if self._live_connections(peer_id)
        ]

    @property
    def libp2p_host(self) -> ReticentHost:
        """libp2p's own host, for the parts of the mesh that run other protocols on it."""
        return self._host

    def serve(self, protocol: str, on_stream: OnStream) -> None:
        """Call `on_stream` with every stream a peer opens for `protocol`; see the class."""

        async def run(net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
            await self._serve(net_stream, on_stream)

        self._host.set_stream_handler(protocol, run)

    async def dial(
        self, peer: PeerId, addresses: Sequence[str], *, protocol: str | None = None
    ) -> LinkStream:
        """Open a stream to `peer`, over the connection there is or a new one.

        Args:
            peer: who must answer.
            addresses: where to look for it, best first; with or without ``/p2p/…``.
            protocol: what to speak, if not that of links.

        Raises:
            NetworkError: nobody there, refused, too slow, or somebody else answered.
        """
        seconds_max = self._limits.dial_seconds_max
        try:
            with trio.fail_after(seconds_max):
                chosen = protocol or self._protocol
                return await self._dial(ID.from_base58(peer), peer, addresses, chosen)
        except trio.TooSlowError as error:
            raise NetworkError(f"{peer} did not answer within {seconds_max:g} s") from error
        except LIBRARY_ERRORS as error:
            raise NetworkError(f"cannot open a stream to {peer}: {error}") from error

    def serve_raw(self, protocol: str, handler: Callable[[Any], Awaitable[None]]) -> None:
        """Have `handler` called with every stream that a peer opens for `protocol`.

        The stream is libp2p's; the handler ends it. What it raises is logged, and resets it.
        """
        self._host.set_stream_handler(protocol, handler)

    def connections(self, peer: PeerId, path: str = DIRECT) -> list[Any]:
        """libp2p's connections to a peer that live, over one kind of path. First those with a link:
        others are closed after a while, and all streams with them."""
        found = self._live_connections(ID.from_base58(peer))
        fitting = [connection for connection in found if connection.muxed_conn.path == path]
        return sorted(fitting, key=self._carries_link, reverse=True)

    async def open_stream(self, peer: PeerId, protocol: str, path: str = DIRECT) -> Any:  # noqa: ANN401
        """Open libp2p's stream for `protocol` to a peer over a connection that is there.

        Raises:
            NetworkError: there is none, or the peer does not speak the protocol.
        """
        for connection in self.connections(peer, path):
            try:
                return await self._negotiate(connection, protocol)
            except (*LIBRARY_ERRORS, trio.TooSlowError) as error:
                raise NetworkError(f"cannot open a stream to {peer}: {error}") from error
        raise NetworkError(f"there is no connection to {peer}")

    async def open_link(self, connection: Any) -> LinkStream:  # noqa: ANN401 (libp2p's SwarmConn)
        """Open the link's stream over a certain connection.

        Raises:
            NetworkError: it is gone, or the peer does not speak the protocol.
        """
        try:
            return await self._open(connection, self._protocol)
        except (*LIBRARY_ERRORS, trio.TooSlowError) as error:
            raise NetworkError(f"cannot open a link's stream: {error}") from error

    async def close_circuits(self, peer: PeerId) -> None:
        """Close the circuits to `peer` that carry no link any more."""
        for connection in self.connections(peer, CIRCUIT):
            if not self._carries_link(connection):
                await connection.close()

    async def connect_over(self, net_stream: Any, peer: PeerId) -> LinkStream:  # noqa: ANN401
        """Connect to `peer` over a circuit, end to end, and open the link's stream.

        Args:
            net_stream: the stream to the relay, which has connected it. It ends with the connection
                or with the failure.

        Raises:
            NetworkError: the far end does not answer, or is somebody else.
        """
        circuit = CircuitStream(net_stream.muxed_stream)
        try:
            with trio.fail_after(self._limits.handshake_seconds_max):
                connection = await self._swarm.upgrade_outbound_raw_conn(
                    _raw(circuit, initiator=True), ID.from_base58(peer)
                )
            stream = self._as_link_stream(
                await self._negotiate(connection, self._protocol), initiator=True
            )
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await net_stream.reset()
            if isinstance(error, Exception):  # Noise raises whatever its parts raise
                reason = str(error) or type(error).__name__
                raise NetworkError(f"no answer from the far end: {reason}") from error
            raise
        self._nursery.start_soon(_release_with, circuit, net_stream)
        return stream

    async def accept_over(self, net_stream: Any) -> None:  # noqa: ANN401
        """Let the far end of a circuit connect to this node, and return when the circuit is over.

        Raises:
            NetworkError: it did not prove who it is.
        """
        circuit = CircuitStream(net_stream.muxed_stream)
        try:
            await self._swarm.upgrade_inbound_raw_conn(_raw(circuit, initiator=False), _NOWHERE)
            await circuit.closed.wait()
        except Exception as error:  # Noise raises whatever its parts raise
            reason = str(error) or type(error).__name__
            raise NetworkError(f"no handshake over the circuit: {reason}") from error

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`."""
        async with trio.open_nursery() as nursery:
            for connection in self._live_connections(ID.from_base58(peer)):
                nursery.start_soon(connection.close)

    # --- starting ----------------------------------------------------------------------------

    def _build_swarm(self, transport: TcpTransport) -> Swarm:
        accept_ed25519_only()
        key_pair = ed25519_key_pair(self._identity.seed)
        peer_id = ID.from_pubkey(key_pair.public_key)
        peerstore = PeerStore()
        peerstore.add_key_pair(peer_id, key_pair)
        return Swarm(
            peer_id,
            peerstore,
            build_upgrader(key_pair, self._limits),
            transports=[transport],
            retry_config=RetryConfig(max_retries=0),
            connection_config=_connection_config(self._limits),
        )

    # --- streams -----------------------------------------------------------------------------

    async def _serve(self, net_stream: Any, on_stream: OnStream) -> None:  # noqa: ANN401 (libp2p's)
        stream = self._as_link_stream(net_stream, initiator=False)
        try:
            await on_stream(stream)
        except NetworkError as error:
            log.info("stream.lost", peer=stream.peer, reason=str(error))
            await stream.reset()
        else:
            await stream.close()

    def _as_link_stream(self, net_stream: Any, *, initiator: bool) -> LinkStream:  # noqa: ANN401
        return LinkStream(
            net_stream, initiator=initiator, write_seconds_max=self._limits.write_seconds_max
        )

    async def _dial(
        self, peer_id: ID, peer: PeerId, addresses: Sequence[str], protocol: str
    ) -> LinkStream:
        if peer == self.peer_id:
            raise NetworkError("that is this node itself")
        for connection in self._live_connections(peer_id):
            try:
                return await self._open(connection, protocol)
            except (*LIBRARY_ERRORS, trio.TooSlowError):
                if protocol != self._protocol:
                    raise  # it may not speak that: no reason to end the link on this connection
                # The peer may have been restarted without our noticing: start afresh.
                self._nursery.start_soon(connection.close)
        return await self._open(await self._connect(peer_id, peer, addresses), protocol)

    async def _open(self, connection: Any, protocol: str) -> LinkStream:  # noqa: ANN401 (libp2p's)
        net_stream = await self._negotiate(connection, protocol)
        return self._as_link_stream(net_stream, initiator=True)

    async def _negotiate(self, connection: Any, protocol: str) -> Any:  # noqa: ANN401
        net_stream = await connection.new_stream()
        try:
            with trio.fail_after(self._limits.negotiation_seconds_max):
                agreed = await self._host.multiselect_client.select_one_of(
                    [protocol], NameReader(net_stream)
                )
        except BaseException:
            with trio.CancelScope(shield=True):
                await net_stream.reset()
            raise
        net_stream.set_protocol(agreed)
        return net_stream

    async def _connect(self, peer_id: ID, peer: PeerId, addresses: Sequence[str]) -> Any:  # noqa: ANN401
        while peer in self._dialing:
            await self._dialing[peer].wait()
            for connection in self._live_connections(peer_id):
                return connection
        finished = self._dialing[peer] = trio.Event()
        try:
            found = await candidates(peer, addresses)
            return await race_addresses(self._swarm.dial_addr, peer_id, found, self._nursery)
        finally:
            del self._dialing[peer]
            finished.set()

    # --- connections -------------------------------------------------------------------------

    def _live_connections(self, peer_id: ID) -> list[Any]:
        """Direct ones first, and of those the newest: a peer that connects anew has lost the older
        ones, even if this end has not noticed."""
        found = [
            connection
            for connection in reversed(self._swarm.connections.get(peer_id, []))
            if not connection.is_closed and connection.muxed_conn.is_established
        ]
        return sorted(found, key=lambda connection: connection.muxed_conn.path != DIRECT)

    def _carries_link(self, connection: Any) -> bool:  # noqa: ANN401 (libp2p's SwarmConn)
        return any(stream.get_protocol() == self._protocol for stream in connection.get_streams())

    async def _sweep_unlinked(self) -> None:
        seconds_max = self._limits.unlinked_seconds_max
        unlinked = UnlinkedConnections(seconds_max)
        while True:
            await trio.sleep(seconds_max / _SWEEPS_PER_PERIOD)
            idle = [one for one in self._swarm.get_connections() if not self._carries_link(one)]
            for connection in unlinked.overdue(idle, trio.current_time()):
                self._nursery.start_soon(connection.close)

    async def _close_everything(self) -> None:
        """Say goodbye everywhere: libp2p drops connections with what waits to be sent."""
        deadline = trio.current_time() + _SHUTDOWN_SECONDS_MAX
        with trio.CancelScope(deadline=deadline, shield=True):
            for listener in self._swarm.listeners.values():
                await listener.close()
            async with trio.open_nursery() as nursery:
                for connection in self._swarm.get_connections():
                    nursery.start_soon(connection.close)


def _connection_config(limits: HostLimits) -> ConnectionConfig:
    return ConnectionConfig(
        # The pruner must never run: it closes whom it likes. The gate refuses instead.
        max_connections=limits.connections_max,
        high_watermark=limits.connections_max,
        low_watermark=0,
        min_connections=0,
        max_connections_per_peer=_CONNECTIONS_PER_PEER_MAX,
        dial_timeout=limits.dial_seconds_max,
        inbound_upgrade_timeout=limits.handshake_seconds_max,
        outbound_upgrade_timeout=limits.handshake_seconds_max,
        inbound_stream_protocol_negotiation_timeout=limits.negotiation_seconds_max,
        outbound_stream_protocol_negotiation_timeout=limits.negotiation_seconds_max,
    )


def _raw(circuit: CircuitStream, *, initiator: bool) -> RawConnection:
    return RawConnection(circuit, initiator, ConnectionType.RELAYED, [_NOWHERE])


async def _release_with(circuit: CircuitStream, net_stream: Any) -> None:  # noqa: ANN401
    """The stream below a circuit stays in libp2p's books until somebody takes it out."""
    await circuit.closed.wait()
    with trio.CancelScope(shield=True):
        await net_stream.close()


def _parse_listen(text: str) -> Multiaddr:
    try:
        return parse_multiaddr(text)
    except ValueError as error:
        raise ConfigError(
            f"{error}; --listen takes addresses like /ip4/0.0.0.0/tcp/4001"
        ) from error
