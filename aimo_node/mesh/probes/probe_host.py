"""A libp2p host that only asks: it dials from one local port and learns how others see that."""

from __future__ import annotations

import socket as stdlib_socket
from typing import Any, Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.fixes.connection_flood import ArrivalGate
from aimo_node.mesh.fixes.direct_dial import LIBRARY_ERRORS
from aimo_node.mesh.fixes.identify_library import (
    IDENTIFY_PROTOCOL,
    DecodeError,
    consume_envelope,
    observed,
    read_answer,
)
from aimo_node.mesh.fixes.library import (
    ID,
    Multiaddr,
    OpenConnectionError,
    RawConnection,
    Swarm,
)
from aimo_node.mesh.fixes.protocol_names import NameReader
from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream
from aimo_node.mesh.fixes.tcp_addresses import tcp_endpoint
from aimo_node.mesh.fixes.tcp_listening import TcpTransport
from aimo_node.mesh.host import HostLimits, LinkStream, MeshHost
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.probes.meeting import Sighting

_RECORD_DOMAIN: Final = "libp2p-peer-record"
_ANY_ADDRESS: Final = {stdlib_socket.AF_INET: "0.0.0.0", stdlib_socket.AF_INET6: "::"}  # noqa: S104 (nothing listens there)


class ProbeHost(MeshHost):
    """Dials every peer from the same local port: only so can two views of it be compared."""

    def __init__(self, identity: KeyPair, limits: HostLimits) -> None:
        super().__init__(identity, [], limits=limits, on_stream=_refuse)
        self._transport: _OnePortTransport | None = None

    async def sighting(self, peer: PeerId) -> Sighting | None:
        """How `peer`, which was dialled, sees this machine; None if it cannot be asked."""
        for connection in self._live_connections(ID.from_base58(peer)):
            try:
                return self._read(peer, await self._identify(connection))
            except (*LIBRARY_ERRORS, DecodeError):
                continue
        return None

    def _build_swarm(self, transport: TcpTransport) -> Swarm:
        self._transport = _OnePortTransport(ArrivalGate(self._limits), self._nursery)
        del transport  # it listens; this host does not
        return super()._build_swarm(self._transport)

    async def _identify(self, connection: Any) -> Any:  # noqa: ANN401 (libp2p's Identify)
        net_stream = await connection.new_stream()
        try:
            await self._host.multiselect_client.select_one_of(
                [IDENTIFY_PROTOCOL], NameReader(net_stream)
            )
            remote = connection.muxed_conn.get_remote_address()
            return remote, await read_answer(net_stream.muxed_stream)
        finally:
            with trio.CancelScope(shield=True):
                await net_stream.reset()

    def _read(self, peer: PeerId, answer: Any) -> Sighting | None:  # noqa: ANN401 (libp2p's)
        remote, said = answer
        local = self._transport.local_ends.get(remote) if self._transport is not None else None
        if local is None:
            return None
        return Sighting(local, observed(said), _signed_at(said, peer))


class _OnePortTransport(TcpTransport):
    """Dials from one local port of each address family; remembers the local end by the remote."""

    def __init__(self, gate: ArrivalGate, nursery: trio.Nursery) -> None:
        super().__init__(gate, nursery)
        self._ports: dict[int, int] = {}
        self.local_ends: dict[tuple[str, int], tuple[str, int]] = {}

    async def dial(self, maddr: Multiaddr) -> RawConnection:
        """As `TcpTransport.dial`."""
        try:
            stream = await self._connect(*tcp_endpoint(maddr))
        except OSError as error:
            raise OpenConnectionError(error.strerror or str(error)) from error
        return RawConnection(BufferedTcpStream(stream), True)  # noqa: FBT003 (libp2p's signature)

    async def _connect(self, host: str, port: int) -> trio.SocketStream:
        family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
        plain = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
        try:
            # Not by trio: nobody else may choose a port between these lines.
            plain.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
            plain.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEPORT, 1)
            plain.bind((_ANY_ADDRESS[family], self._ports.get(family, 0)))
            self._ports[family] = plain.getsockname()[1]
        except BaseException:
            plain.close()
            raise
        connecting = trio.socket.from_stdlib_socket(plain)
        try:
            await connecting.connect((host, port))
            self.local_ends[host, port] = connecting.getsockname()[:2]
        except BaseException:
            connecting.close()
            raise
        return trio.SocketStream(connecting)


async def _refuse(stream: LinkStream) -> None:
    """Nobody is expected."""
    await stream.reset()


def _signed_at(said: Any, peer: PeerId) -> float | None:  # noqa: ANN401 (libp2p's Identify)
    """Believed only if the peer itself signed it."""
    try:
        envelope, record = consume_envelope(said.signedPeerRecord, _RECORD_DOMAIN)
        signer = ID.from_pubkey(envelope.public_key).to_base58()
        seconds = int(record.seq) / 1e9
    except (*LIBRARY_ERRORS, DecodeError, TypeError, LookupError):
        return None
    return seconds if signer == peer else None
