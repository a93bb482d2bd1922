"""What relays say of themselves: between what the node thinks in and what travels.

Signatures are checked elsewhere, over `Relay.body` as it came (`signing`).
"""

from __future__ import annotations

from aimo_node.domain.ids import PeerId, is_peer_id
from aimo_node.domain.join import peer_of_address
from aimo_node.domain.relays import RelayAnnouncement
from aimo_node.errors import ConfigError, RemoteProtocolError
from aimo_node.protocol import codec, frames, limits


def announce_relay(announcement: RelayAnnouncement) -> bytes:
    """The `RelayBody` bytes to sign and send; addresses that have no room are left out."""
    fitting = [one for one in announcement.addresses if len(one) <= limits.ADDRESS_CHARS_MAX]
    return codec.encode_part(
        frames.RelayBody(
            announcement.peer,
            announcement.incarnation,
            announcement.revision,
            fitting[: limits.RELAY_ADDRESSES_MAX],
        )
    )


def read_relay(frame: frames.Relay) -> RelayAnnouncement:
    """What a Relay says; verify its signature against `peer` before you believe it.

    Raises:
        RemoteProtocolError: malformed, over a bound, or an address that leads to somebody else.
    """
    body = codec.decode_part(frame.body, frames.RelayBody)
    if not is_peer_id(body.peer_id):
        raise RemoteProtocolError("a relay has no peer id")
    for address in body.addresses:
        check_relay_address(PeerId(body.peer_id), address)
    return RelayAnnouncement(
        PeerId(body.peer_id), body.incarnation, body.revision, tuple(body.addresses)
    )


def check_relay_address(peer: PeerId, address: str) -> None:
    """Refuse an address at which a relay cannot be dialled.

    Raises:
        RemoteProtocolError: it leads to another peer, through a circuit, or is no address.
    """
    try:
        named = peer_of_address(address)
    except ConfigError as error:
        raise RemoteProtocolError(f"an address of a relay: {error}") from error
    if named != peer or "/p2p-circuit" in address:
        raise RemoteProtocolError("an address of a relay leads to somebody else")
