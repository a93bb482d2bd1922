"""The one door to libp2p: version check, lean import, silence, then the names the mesh uses."""

from __future__ import annotations

from aimo_node.mesh.fixes.lean_import import lean_imports
from aimo_node.mesh.fixes.log_noise import quieten
from aimo_node.mesh.fixes.version import require_known_version

require_known_version()

with lean_imports():
    from libp2p.abc import IListener, IMuxedConn, IMuxedStream, INotifee
    from libp2p.connection_types import ConnectionType
    from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
    from libp2p.crypto.keys import KeyType
    from libp2p.crypto.serialization import (
        key_type_to_private_key_deserializer,
        key_type_to_public_key_deserializer,
    )
    from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
    from libp2p.exceptions import BaseLibp2pError
    from libp2p.host.basic_host import BasicHost
    from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH_PROTOCOL
    from libp2p.io.abc import ReadWriteCloser
    from libp2p.io.exceptions import ConnectionClosedError
    from libp2p.io.trio import TrioTCPStream
    from libp2p.network.config import ConnectionConfig, RetryConfig
    from libp2p.network.connection import swarm_connection
    from libp2p.network.connection.raw_connection import RawConnection
    from libp2p.network.swarm import Swarm
    from libp2p.peer.id import ID
    from libp2p.peer.peerstore import PeerStore
    from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError, MultiselectError
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
    from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
    from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL
    from libp2p.security.noise.transport import Transport as NoiseTransport
    from libp2p.stream_muxer.exceptions import (
        MuxedConnUnavailable,
        MuxedStreamClosed,
        MuxedStreamEOF,
        MuxedStreamError,
        MuxedStreamReset,
    )
    from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
    from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL
    from libp2p.transport.exceptions import MuxerUpgradeFailure, OpenConnectionError
    from libp2p.transport.tcp.tcp import TCP
    from libp2p.transport.upgrader import TransportUpgrader
    from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error as MultiaddrError
    from multiaddr.utils import get_network_addrs

quieten(swarm_connection)

__all__ = [
    "ID",
    "IDENTIFY_PUSH_PROTOCOL",
    "NOISE_PROTOCOL",
    "TCP",
    "YAMUX_PROTOCOL",
    "BaseLibp2pError",
    "BasicHost",
    "ConnectionClosedError",
    "ConnectionConfig",
    "ConnectionType",
    "HolePunch",
    "HopMessage",
    "IListener",
    "IMuxedConn",
    "IMuxedStream",
    "INotifee",
    "KeyType",
    "Multiaddr",
    "MultiaddrError",
    "MultiselectCommunicator",
    "MultiselectCommunicatorError",
    "MultiselectError",
    "MuxedConnUnavailable",
    "MuxedStreamClosed",
    "MuxedStreamEOF",
    "MuxedStreamError",
    "MuxedStreamReset",
    "MuxerMultistream",
    "MuxerUpgradeFailure",
    "NoiseTransport",
    "OpenConnectionError",
    "PeerIDMismatchesPubkey",
    "PeerStore",
    "RawConnection",
    "ReadWriteCloser",
    "RetryConfig",
    "StopMessage",
    "Swarm",
    "TransportUpgrader",
    "TrioTCPStream",
    "ed25519_key_pair",
    "encode_varint_prefixed",
    "get_network_addrs",
    "key_type_to_private_key_deserializer",
    "key_type_to_public_key_deserializer",
    "read_varint_prefixed_bytes_limited",
    "swarm_connection",
    "x25519_key_pair",
]
