"""The third door to libp2p: reading an answer to Identify, which says how a peer sees us."""

from __future__ import annotations

from aimo_node.mesh.fixes import library
from aimo_node.mesh.fixes.lean_import import lean_imports

# Importing the first door has checked the version.
Multiaddr = library.Multiaddr

with lean_imports():
    from google.protobuf.message import DecodeError
    from libp2p.identity.identify.identify import ID as IDENTIFY_PROTOCOL
    from libp2p.identity.identify.identify import parse_identify_response
    from libp2p.peer.envelope import consume_envelope

__all__ = [
    "IDENTIFY_PROTOCOL",
    "DecodeError",
    "Multiaddr",
    "consume_envelope",
    "parse_identify_response",
]
