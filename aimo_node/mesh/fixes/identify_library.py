"""The third door to libp2p: reading an answer to Identify, which says how a peer sees us."""

from __future__ import annotations

from typing import Any, Final

from aimo_node.mesh.fixes import library
from aimo_node.mesh.fixes.direct_dial import LIBRARY_ERRORS
from aimo_node.mesh.fixes.lean_import import lean_imports
from aimo_node.mesh.fixes.tcp_addresses import tcp_endpoint

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
    "observed",
    "read_answer",
]

_ANSWER_BYTES_MAX: Final = 65_536


async def read_answer(stream: Any) -> Any:  # noqa: ANN401 (libp2p's stream and Identify)
    """What a peer says of itself, and of how it sees us, on a stream of `IDENTIFY_PROTOCOL`.

    Raises:
        LIBRARY_ERRORS, DecodeError: it says nothing that can be read.
    """
    data = b""
    while len(data) < _ANSWER_BYTES_MAX:
        try:
            more = await stream.read(_ANSWER_BYTES_MAX)
        except library.MuxedStreamEOF:
            break
        if not more:
            break
        data += more
    return parse_identify_response(data)


def observed(answer: Any) -> tuple[str, int] | None:  # noqa: ANN401 (libp2p's Identify)
    """IP address and port where the peer sees this end of the connection; None if it says none."""
    try:
        return tcp_endpoint(Multiaddr(answer.observed_addr)) if answer.observed_addr else None
    except (*LIBRARY_ERRORS, LookupError):
        return None
