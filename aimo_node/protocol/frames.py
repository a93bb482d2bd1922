"""Every frame of the wire. A frame is a msgpack array: its type number, then its fields in order.

The position of a field is its number. A sender may leave out trailing fields that have their
default; a receiver ignores fields beyond those it knows.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from aimo_node.domain.ids import REQUEST_ID_BYTES
from aimo_node.protocol import limits


class FrameType(enum.IntEnum):
    """Type numbers; 1–5 are the message types of the MessageFrame specification."""

    Request = 1
    Response = 2
    StreamChunk = 3
    Error = 4
    Heartbeat = 5
    Hello = 6
    Accepted = 7
    Body = 8
    Credit = 9
    Cancel = 10
    Ping = 11
    Pong = 12
    GoAway = 13
    Subscribe = 14
    Descriptor = 15
    Directory = 16
    Receipt = 17


INFERENCE: Final = 1
"""The only request type of version 1."""
ENGINE_RUNNING: Final = 2
"""The engine state of a model that answers at once; what older nodes left out meant that."""
UNSIGNED32_MAX: Final = 0xFFFF_FFFF

RequestIdField = Annotated[bytes, Meta(min_length=REQUEST_ID_BYTES, max_length=REQUEST_ID_BYTES)]
Unsigned8 = Annotated[int, Meta(ge=0, le=0xFF)]
Unsigned16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
Unsigned32 = Annotated[int, Meta(ge=0, le=UNSIGNED32_MAX)]
Unsigned63 = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
Permille = Annotated[int, Meta(ge=0, le=1000)]
Payload = Annotated[bytes, Meta(max_length=limits.PAYLOAD_BYTES_MAX)]
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)]
ModelName = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
PeerIdField = Annotated[str, Meta(max_length=limits.PEER_ID_CHARS_MAX)]
Message = Annotated[str, Meta(max_length=limits.MESSAGE_CHARS_MAX)]
Digest = Annotated[bytes, Meta(max_length=limits.DIGEST_BYTES_MAX)]
Signature = Annotated[
    bytes, Meta(min_length=limits.SIGNATURE_BYTES, max_length=limits.SIGNATURE_BYTES)
]
Headers = Annotated[
    dict[
        Annotated[str, Meta(max_length=limits.HEADER_NAME_CHARS_MAX)],
        Annotated[str, Meta(max_length=limits.HEADER_VALUE_CHARS_MAX)],
    ],
    Meta(max_length=limits.HEADERS_MAX),
]
Details = Annotated[
    dict[
        Annotated[str, Meta(max_length=limits.HEADER_NAME_CHARS_MAX)],
        Annotated[str, Meta(max_length=limits.DETAIL_CHARS_MAX)],
    ],
    Meta(max_length=limits.DETAILS_MAX),
]


class Limits(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the sender of a Hello is ready to take; every node takes at least version 1's frames.

    Fields: largest frame in bytes, requests at a time, first credit window in bytes.
    """

    frame_bytes: Annotated[int, Meta(ge=limits.FRAME_BYTES_MAX, le=UNSIGNED32_MAX)] = (
        limits.FRAME_BYTES_MAX
    )
    requests: Unsigned32 = limits.REQUESTS_PER_LINK_MAX
    credit_bytes: Annotated[int, Meta(ge=limits.CREDIT_INITIAL_BYTES, le=UNSIGNED32_MAX)] = (
        limits.CREDIT_INITIAL_BYTES
    )


class UsageCount(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Tokens of one request."""

    prompt_tokens: Unsigned32 = 0
    completion_tokens: Unsigned32 = 0
    cached_tokens: Unsigned32 = 0


class Hello(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """The first frame each way.

    `mesh` names the mesh (empty if open), `proof` shows membership in it, `roles` is a bit set:
    1 relay, 2 provider, 4 edge.
    """

    versions: Annotated[list[Unsigned16], Meta(min_length=1, max_length=8)]
    mesh: Digest = b""
    proof: Annotated[bytes, Meta(max_length=limits.PROOF_BYTES_MAX)] = b""
    limits: Limits = Limits()
    agent: Annotated[str, Meta(max_length=limits.AGENT_CHARS_MAX)] = ""
    roles: Unsigned16 = 0


class Request(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """One inference. `body_bytes` > 0: the payload is empty and Body frames bring it."""

    request_id: RequestIdField
    provider_id: PeerIdField
    endpoint: Unsigned16
    request_type: Unsigned16
    content_type: Unsigned8
    payload: Annotated[bytes, Meta(max_length=limits.INLINE_BYTES_MAX)]
    body_bytes: Annotated[int, Meta(ge=0, le=limits.BODY_BYTES_MAX)]
    stream: bool
    headers: Headers
    deadline_ms: Unsigned32
    public_id: Annotated[str, Meta(max_length=limits.PUBLIC_ID_CHARS_MAX)]
    credit: Annotated[
        int, Meta(ge=limits.CREDIT_INITIAL_BYTES, le=limits.CREDIT_WINDOW_BYTES_MAX)
    ] = limits.CREDIT_INITIAL_BYTES


class Response(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """An answer that is not streamed. `body_bytes` > 0: Body frames follow and end it."""

    request_id: RequestIdField
    status_code: Annotated[int, Meta(ge=200, le=299)]
    content_type: Unsigned8
    payload: Annotated[bytes, Meta(max_length=limits.INLINE_BYTES_MAX)]
    headers: Headers
    finish_reason: Unsigned8
    usage: UsageCount
    receipt: Annotated[bytes, Meta(max_length=limits.RECEIPT_BYTES_MAX)] = b""
    body_bytes: Annotated[int, Meta(ge=0, le=limits.BODY_BYTES_MAX)] = 0


class StreamChunk(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """A piece of a streamed answer; indexes are gapless from 0, the final one ends it."""

    request_id: RequestIdField
    chunk_index: Unsigned32
    content_type: Unsigned8
    payload: Payload
    is_final: bool = False
    finish_reason: Unsigned8 = 0
    usage: UsageCount = UsageCount()
    receipt: Annotated[bytes, Meta(max_length=limits.RECEIPT_BYTES_MAX)] = b""


class Error(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Ends a request. `details` may hold ``param`` and ``retry_after_ms``."""

    error_code: Unsigned16
    message: Message
    details: Details
    request_id: RequestIdField


class Heartbeat(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """How a provider is; at most 128 bytes. `status`: 0 healthy, 1 degraded, 2 offline."""

    node_id: PeerIdField
    incarnation: Unsigned63
    seq: Unsigned32
    status: Annotated[int, Meta(ge=0, le=2)]
    load: Permille
    running: Unsigned32
    waiting: Unsigned32
    kv_used: Permille
    prefix_hits: Permille = 0
    first_token_ms: Unsigned32 = 0


class Accepted(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """The provider took the request; an upload may begin with the first credit window."""

    request_id: RequestIdField
    model_digest: Digest = b""
    queue_position: Unsigned32 = 0


class Body(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """A piece of a body over 16 KiB; offsets are gapless."""

    request_id: RequestIdField
    offset: Unsigned32
    payload: Annotated[bytes, Meta(min_length=1, max_length=limits.BODY_PIECE_BYTES)]
    last: bool


class Credit(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """More may be sent; `chunk_index` is one more than the last chunk received."""

    request_id: RequestIdField
    credit_bytes: Annotated[int, Meta(ge=1, le=limits.CREDIT_LINK_BYTES_MAX)]
    chunk_index: Unsigned32


class Cancel(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Stop; `chunk_index` is one more than the last chunk received: what is billed."""

    request_id: RequestIdField
    chunk_index: Unsigned32


class Ping(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """Are you there?"""

    nonce: Unsigned63


class Pong(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """Yes; the same nonce."""

    nonce: Unsigned63


class GoAway(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """No new requests. With close code Draining running ones finish, with others the link ends."""

    close_code: Unsigned16
    message: Message = ""


class Subscribe(msgspec.Struct, array_like=True, tag=14, frozen=True, gc=False):
    """The models an edge wants to hear about; empty for all."""

    models: Annotated[list[Name], Meta(max_length=limits.SUBSCRIBE_MODELS_MAX)] = []


class Model(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One model of a provider; prices in micro-USD per million tokens.

    `state` is an engine state: running answers at once, any other means that it is loaded first.
    """

    name: ModelName
    digest: Digest = b""
    context_tokens: Unsigned32 = 0
    endpoints: Annotated[list[Unsigned16], Meta(max_length=16)] = []
    features: Annotated[list[Annotated[str, Meta(max_length=32)]], Meta(max_length=16)] = []
    price_in: Unsigned63 = 0
    price_out: Unsigned63 = 0
    state: Unsigned8 = ENGINE_RUNNING


class Engine(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One engine of a provider, in whatever state; for people, not for routing."""

    label: Annotated[str, Meta(min_length=1, max_length=64)]
    engine: Annotated[str, Meta(max_length=64)]
    state: Unsigned8
    models: Annotated[list[ModelName], Meta(max_length=limits.DESCRIPTOR_MODELS_MAX)] = []
    requests_max: Unsigned32 = 0


class DescriptorBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a Descriptor signs: what a provider offers and where it is."""

    peer_id: PeerIdField
    incarnation: Unsigned63
    models: Annotated[list[Model], Meta(max_length=limits.DESCRIPTOR_MODELS_MAX)]
    addresses: Annotated[
        list[Annotated[str, Meta(max_length=limits.ADDRESS_CHARS_MAX)]],
        Meta(max_length=limits.DESCRIPTOR_ADDRESSES_MAX),
    ]
    engine: Annotated[str, Meta(max_length=64)] = ""
    engine_state: Unsigned8 = 0
    requests_max: Unsigned32 = 0
    region: Annotated[str, Meta(max_length=64)] = ""
    version: Annotated[str, Meta(max_length=64)] = ""
    sealing_key: Annotated[bytes, Meta(max_length=64)] = b""
    revision: Unsigned32 = 0
    engines: Annotated[list[Engine], Meta(max_length=limits.DESCRIPTOR_ENGINES_MAX)] = []


class Descriptor(msgspec.Struct, array_like=True, tag=15, frozen=True, gc=False):
    """A DescriptorBody as the exact bytes its provider signed."""

    body: Annotated[bytes, Meta(max_length=limits.DESCRIPTOR_BYTES_MAX)]
    signature: Signature


class RelayBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a Relay signs: where a relay of the mesh can be dialled."""

    peer_id: PeerIdField
    incarnation: Unsigned63
    revision: Unsigned32
    addresses: Annotated[
        list[Annotated[str, Meta(max_length=limits.ADDRESS_CHARS_MAX)]],
        Meta(max_length=limits.RELAY_ADDRESSES_MAX),
    ]


class Relay(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A RelayBody as the exact bytes that relay signed."""

    body: Annotated[bytes, Meta(max_length=limits.RELAY_BYTES_MAX)]
    signature: Signature


class Directory(msgspec.Struct, array_like=True, tag=16, frozen=True, gc=False):
    """One batch of a relay. `full`: forget what this relay said before, the batch starts anew.
    `relays` are told to every peer, the rest to those that asked."""

    full: bool
    descriptors: Annotated[list[Descriptor], Meta(max_length=limits.DIRECTORY_ENTRIES_MAX)] = []
    statuses: Annotated[list[Heartbeat], Meta(max_length=limits.DIRECTORY_ENTRIES_MAX)] = []
    gone: Annotated[list[PeerIdField], Meta(max_length=limits.DIRECTORY_ENTRIES_MAX)] = []
    relays: Annotated[list[Relay], Meta(max_length=limits.DIRECTORY_RELAYS_MAX)] = []


class Receipt(msgspec.Struct, array_like=True, tag=17, frozen=True, gc=False):
    """Receipts of finished requests: opaque bytes, signed by provider and edge."""

    body: Annotated[bytes, Meta(max_length=limits.RECEIPT_BYTES_MAX)]
    provider_signature: Signature
    edge_signature: Annotated[bytes, Meta(max_length=limits.SIGNATURE_BYTES)] = b""


def clamp_unsigned32(number: int) -> int:
    """The nearest number an `Unsigned32` field can hold: counts come from engines."""
    return min(max(number, 0), UNSIGNED32_MAX)


Frame: TypeAlias = (
    StreamChunk
    | Request
    | Response
    | Error
    | Heartbeat
    | Hello
    | Accepted
    | Body
    | Credit
    | Cancel
    | Ping
    | Pong
    | GoAway
    | Subscribe
    | Descriptor
    | Directory
    | Receipt
)


class MessageBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a MessageFrame signs. `payload` is one encoded frame, `target_id` empty for all."""

    message_type: Unsigned8
    id: RequestIdField
    timestamp_ms: Unsigned63
    sender_id: PeerIdField
    target_id: PeerIdField
    payload: Annotated[bytes, Meta(max_length=limits.GOSSIP_BYTES_MAX)]


class MessageFrame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The envelope on gossipsub, where no link says who speaks: version, signed body, signature."""

    version: Unsigned16
    body: Annotated[bytes, Meta(max_length=limits.GOSSIP_BYTES_MAX)]
    signature: Signature
