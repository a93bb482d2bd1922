"""Fault: libp2p's circuit relay reserves for whomever a message names and hops for anybody.

It also ends every circuit at fixed limits, answers and relays with pauses of its own, tries a
broken read again for seconds, closes the wrong circuit when a peer has two, and announces
reservations it holds for peers that have gone. Its service and its transport are therefore not
used: `circuits/hops.py` and `circuits/client.py` speak the protocol, with these messages.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from aimo_node.domain.ids import PeerId, is_peer_id
from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.library import (
    ID,
    BaseLibp2pError,
    HopMessage,
    Multiaddr,
    MultiaddrError,
    StopMessage,
    encode_varint_prefixed,
    read_varint_prefixed_bytes_limited,
)
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/stop"

_MESSAGE_BYTES_MAX: Final = 4096
"""What the specification allows; a status with sixteen addresses has half of it."""

_PEER_ID_BYTES_MAX: Final = 64
"""A peer id of an Ed25519 key has 38."""

_ADDRESSES_MAX: Final = 16
"""Addresses of a relay that are read; as many as a descriptor holds."""


class Status(enum.IntEnum):
    """How a request of a circuit was answered."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a relay granted.

    Attributes:
        expires: seconds since the epoch, by the relay's clock.
        addresses: the relay's own, each ending in ``/p2p/RELAY``.
    """

    expires: int
    addresses: tuple[str, ...] = ()


async def ask_for_reservation(stream: YamuxStream) -> Reservation:
    """Ask the relay at the other end to let others reach this node through it.

    Raises:
        NetworkError: it refused, or spoke nonsense.
    """
    await write_message(stream, HopMessage(type=HopMessage.RESERVE))
    answer = await read_message(stream, HopMessage)
    _require_ok(answer, HopMessage.STATUS)
    return Reservation(
        int(answer.reservation.expire), readable(answer.reservation.addrs[:_ADDRESSES_MAX])
    )


async def ask_for_circuit(stream: YamuxStream, peer: PeerId) -> None:
    """Ask the relay at the other end to connect `stream` to `peer`; from then on it does.

    Raises:
        NetworkError: it refused, or spoke nonsense.
    """
    wish = HopMessage(type=HopMessage.CONNECT)
    wish.peer.id = _raw_id(peer)
    await write_message(stream, wish)
    _require_ok(await read_message(stream, HopMessage), HopMessage.STATUS)


async def offer_circuit(stream: YamuxStream, source: PeerId) -> None:
    """Tell the peer at the other end that `source` wants to talk to it over `stream`.

    Raises:
        NetworkError: it refused, or spoke nonsense.
    """
    offer = StopMessage(type=StopMessage.CONNECT)
    offer.peer.id = _raw_id(source)
    await write_message(stream, offer)
    _require_ok(await read_message(stream, StopMessage), StopMessage.STATUS)


async def read_wish(stream: YamuxStream) -> PeerId | None:
    """What a peer asks a relay for: a circuit to the peer returned, or None for a reservation.

    A reservation is for the peer that asks, whomever the message names.

    Raises:
        NetworkError: the message is none a relay is asked.
    """
    message = await read_message(stream, HopMessage)
    if message.type == HopMessage.RESERVE:
        return None
    if message.type != HopMessage.CONNECT:
        raise NetworkError("a relay is asked for a reservation or a circuit")
    return _peer_in(message)


async def read_offer(stream: YamuxStream) -> PeerId:
    """Whom a relay says it connects to this node. Noise tells who it is.

    Raises:
        NetworkError: not an offer.
    """
    message = await read_message(stream, StopMessage)
    if message.type != StopMessage.CONNECT:
        raise NetworkError("a relay offers circuits and nothing else")
    return _peer_in(message)


async def answer_wish(stream: YamuxStream, status: Status) -> None:
    """Tell a peer what came of its wish for a circuit."""
    await write_message(stream, HopMessage(type=HopMessage.STATUS, status=_on_the_wire(status)))


async def grant_reservation(stream: YamuxStream, reservation: Reservation) -> None:
    """Tell a peer that it has a reservation. No limit is named, since none is near."""
    message = HopMessage(type=HopMessage.STATUS, status=_on_the_wire(Status.OK))
    message.reservation.expire = reservation.expires
    message.reservation.addrs.extend(packed(reservation.addresses[:_ADDRESSES_MAX]))
    await write_message(stream, message)


async def answer_offer(stream: YamuxStream, status: Status) -> None:
    """Tell a relay whether this node takes the circuit."""
    await write_message(stream, StopMessage(type=StopMessage.STATUS, status=_on_the_wire(status)))


def _raw_id(peer: PeerId) -> bytes:
    return bytes(ID.from_base58(peer).to_bytes())


def _on_the_wire(status: Status) -> Any:  # noqa: ANN401 (a type of its own in libp2p's stubs)
    return int(status)


def _peer_in(message: Any) -> PeerId:  # noqa: ANN401 (a protobuf of libp2p)
    raw = message.peer.id
    # base 58 of a long one would keep the node busy for whoever asks
    text = ID(raw).to_base58() if len(raw) <= _PEER_ID_BYTES_MAX else ""
    if not is_peer_id(text):
        raise NetworkError("a circuit leads to no peer id")
    return PeerId(text)


def packed(addresses: Sequence[str]) -> list[bytes]:
    """Multiaddresses as bytes, without those that cannot be packed."""
    found = []
    for text in addresses:
        try:
            found.append(Multiaddr(text).to_bytes())
        except (MultiaddrError, ValueError):
            continue  # of a kind this library does not know, or a name with an underscore
    return found


def readable(addresses: Sequence[bytes]) -> tuple[str, ...]:
    """Multiaddresses as text, without those of kinds that this library does not know."""
    found = []
    for raw in addresses:
        try:
            found.append(str(Multiaddr(raw)))
        except (MultiaddrError, ValueError):
            continue
    return tuple(found)


def _require_ok(answer: Any, kind: int) -> None:  # noqa: ANN401
    if answer.type != kind:
        raise NetworkError("the answer is no status")
    if answer.status != Status.OK:
        known = answer.status in set(Status)
        name = Status(answer.status).name if known else str(answer.status)
        raise NetworkError(name.lower().replace("_", " "))


async def write_message(stream: YamuxStream, message: Any) -> None:  # noqa: ANN401
    """Send a protobuf with its length in front.

    Raises:
        NetworkError: the stream is gone.
    """
    try:
        await stream.write(encode_varint_prefixed(message.SerializeToString()))
    except BaseLibp2pError as error:
        raise NetworkError("the stream broke off") from error


async def read_message(stream: YamuxStream, kind: Any) -> Any:  # noqa: ANN401
    """The next protobuf of a class of libp2p's.

    Raises:
        NetworkError: the stream is gone, or what came is too long or none.
    """
    try:
        data = await read_varint_prefixed_bytes_limited(stream, _MESSAGE_BYTES_MAX)
        return kind.FromString(data)
    except (BaseLibp2pError, DecodeError) as error:
        raise NetworkError(f"no message that can be read: {error}") from error
