"""Fault: libp2p ignores a muxer class of ours for Yamux and always builds its own.

It also offers mplex, TLS, SECIO and **plaintext** by default; a peer may choose, and plaintext
proves nobody's identity. Here the choice is Noise, then `YamuxConnection`.
"""

from __future__ import annotations

from typing import Any

from aimo_node.mesh.fixes.circuit_stream import CircuitStream
from aimo_node.mesh.fixes.library import (
    ID,
    NOISE_PROTOCOL,
    YAMUX_PROTOCOL,
    KeyType,
    MuxerMultistream,
    MuxerUpgradeFailure,
    NoiseTransport,
    RawConnection,
    TransportUpgrader,
    key_type_to_private_key_deserializer,
    key_type_to_public_key_deserializer,
    x25519_key_pair,
)
from aimo_node.mesh.fixes.limits import HostLimits
from aimo_node.mesh.fixes.read_ahead import BufferedTcpStream
from aimo_node.mesh.fixes.yamux_messages import YamuxConnection


class YamuxOnly(MuxerMultistream):  # type: ignore[misc]
    """Negotiates Yamux and builds our connection from what the handshakes left behind."""

    def __init__(self, limits: HostLimits) -> None:
        super().__init__({YAMUX_PROTOCOL: YamuxConnection}, int(limits.negotiation_seconds_max))
        self._limits = limits

    async def new_conn(self, conn: Any, peer_id: ID) -> YamuxConnection:  # noqa: ANN401
        """Agree on Yamux over the secured connection `conn` and take it over.

        Raises:
            MuxerUpgradeFailure: the connection runs over neither TCP nor a circuit.
        """
        raw = conn.conn.read_writer.read_write_closer
        lower = raw.stream if isinstance(raw, RawConnection) else None
        if not isinstance(lower, BufferedTcpStream | CircuitStream):
            raise MuxerUpgradeFailure("only connections over TCP and circuits are supported")
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        connection = YamuxConnection(conn, lower, peer_id, self._limits)
        self._annotate_connection(connection, conn, protocol)
        return connection


def build_upgrader(key_pair: Any, limits: HostLimits) -> TransportUpgrader:  # noqa: ANN401
    """An upgrader that knows Noise and Yamux and nothing else.

    Args:
        key_pair: libp2p's form of the node's Ed25519 key pair.
        limits: the host's limits.
    """
    noise = NoiseTransport(key_pair, noise_privkey=x25519_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE_PROTOCOL: noise}, {})
    upgrader.muxer_multistream = YamuxOnly(limits)
    return upgrader


def accept_ed25519_only() -> None:
    """Refuse peers with other keys: their peer ids do not carry the key (see `identity.py`)."""
    for known in (key_type_to_public_key_deserializer, key_type_to_private_key_deserializer):
        for kind in list(known):
            if kind != KeyType.Ed25519.value:
                del known[kind]
