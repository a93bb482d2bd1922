"""The second door to libp2p: gossipsub, for the nodes that use it (relays)."""

from __future__ import annotations

from aimo_node.mesh.fixes import library
from aimo_node.mesh.fixes.lean_import import lean_imports

# Importing the first door has checked the version.
ID = library.ID

with lean_imports():
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11 as GOSSIPSUB_V11
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12 as GOSSIPSUB_V12
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pb.rpc_pb2 import RPC, Message
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.pubsub.pubsub_notifee import PubsubNotifee
    from libp2p.tools.anyio_service import background_trio_service

__all__ = [
    "GOSSIPSUB_V11",
    "GOSSIPSUB_V12",
    "ID",
    "RPC",
    "GossipSub",
    "Message",
    "Pubsub",
    "PubsubNotifee",
    "background_trio_service",
]
