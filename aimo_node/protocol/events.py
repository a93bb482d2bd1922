"""What happened on a link. Frames that mean just what they say are events themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from aimo_node.domain.answer import AnswerPart
from aimo_node.domain.ids import RequestId
from aimo_node.errors import CloseCode, CodedError
from aimo_node.protocol.frames import (
    Accepted,
    Descriptor,
    Directory,
    Heartbeat,
    Hello,
    Receipt,
    Request,
    Subscribe,
)


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """The peer's Hello was accepted."""

    hello: Hello
    version: int


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """The peer has accepted our Hello, too: it answered `Session.probe`."""


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A request arrived; `body` is None while Body frames are still to come."""

    request: Request
    body: bytes | None


@dataclass(frozen=True, slots=True)
class BodyReceived:
    """The whole body of a request that came in pieces."""

    request_id: RequestId
    body: bytes


@dataclass(frozen=True, slots=True)
class RequestWithdrawn:
    """The edge cancelled; `chunk_index` chunks were taken."""

    request_id: RequestId
    chunk_index: int


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """A request may send more; what had waited is on its way."""

    request_id: RequestId


class PartReceived(NamedTuple):
    """A part of an answer arrived; `size` payload bytes are owed as credit once it is taken.

    A named tuple, since there is one for each token.
    """

    request_id: RequestId
    part: AnswerPart
    size: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The provider ended a request with an error."""

    request_id: RequestId
    error: CodedError


@dataclass(frozen=True, slots=True)
class PeerSuspect:
    """Silent for `SUSPECT_SECONDS`: new requests go elsewhere."""


@dataclass(frozen=True, slots=True)
class PeerRecovered:
    """Heard again after having been suspect."""


@dataclass(frozen=True, slots=True)
class PeerDraining:
    """The peer takes no new requests."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link has ended and nothing more can be sent; pending output is a last GoAway at most."""

    close_code: CloseCode
    message: str
    by_peer: bool


Event: TypeAlias = (
    PartReceived
    | Accepted
    | LinkOpened
    | ProbeAnswered
    | RequestReceived
    | BodyReceived
    | RequestWithdrawn
    | CreditReceived
    | RequestFailed
    | PeerSuspect
    | PeerRecovered
    | PeerDraining
    | LinkClosed
    | Heartbeat
    | Descriptor
    | Directory
    | Subscribe
    | Receipt
)
