"""The exchange `/aimo/members/1`: getting a certificate, renewing it, hearing of bans.

Whoever opens the stream says one message, the other answers with one, and the stream ends. A
message is its length in four bytes, big-endian, and a msgpack array that begins with its number.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from aimo_node.errors import RemoteProtocolError
from aimo_node.protocol import limits
from aimo_node.protocol.certificates import SIGNED_BYTES_MAX
from aimo_node.protocol.frames import Message, PeerIdField, Unsigned16, Unsigned63

MESSAGE_BYTES_MAX: Final = SIGNED_BYTES_MAX + limits.ENVELOPE_BYTES_MAX
_PREFIX: Final = limits.LENGTH_PREFIX_BYTES
_Sealed = Annotated[bytes, Meta(max_length=SIGNED_BYTES_MAX)]


class Redeem(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Make me a member: here is an invite. `now_ms` is the asker's clock."""

    invite: Annotated[bytes, Meta(max_length=limits.PROOF_BYTES_MAX)]
    now_ms: Unsigned63


class Renew(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """I am a member: a new certificate, please. Noise has proved who asks."""

    now_ms: Unsigned63


class Bans(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """This is the latest list of bans I know."""

    bans: _Sealed


class Show(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """My certificate is a new one: judge our link by it from now on."""

    certificate: Annotated[bytes, Meta(max_length=limits.PROOF_BYTES_MAX)]


class PassOn(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """From a relay to the authority: somebody asked me, who cannot reach you.

    Attributes:
        peer_id: who asked, as Noise proved to the relay.
    """

    peer_id: PeerIdField
    question: Redeem | Renew


class Granted(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Your certificate, the latest list of bans, and the authority's clock."""

    certificate: Annotated[bytes, Meta(max_length=limits.PROOF_BYTES_MAX)]
    bans: _Sealed
    now_ms: Unsigned63


class Refused(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """No, and why: a number of `Refusal`, a sentence for a person, the answerer's clock."""

    reason: Unsigned16
    message: Message
    now_ms: Unsigned63


class Taken(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """The list was read."""


Question: TypeAlias = Redeem | Renew | Bans | Show | PassOn
Answer: TypeAlias = Granted | Refused | Taken
_Kind = TypeVar("_Kind")


def encode(message: Question | Answer) -> bytes:
    """The message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_PREFIX, "big") + body


def missing_bytes(data: bytes) -> int:
    """How many more bytes the message that begins with `data` needs at least.

    Raises:
        RemoteProtocolError: it is too long, or something follows it.
    """
    if len(data) < _PREFIX:
        return _PREFIX - len(data)
    length = int.from_bytes(data[:_PREFIX], "big")
    if length > MESSAGE_BYTES_MAX or len(data) > _PREFIX + length:
        raise RemoteProtocolError("a message about membership is too long")
    return _PREFIX + length - len(data)


def decode_question(data: bytes) -> Question:
    """What is asked. Raises RemoteProtocolError."""
    return _decode(data, _questions)


def decode_answer(data: bytes) -> Answer:
    """What is answered. Raises RemoteProtocolError."""
    return _decode(data, _answers)


_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[_Kind]) -> _Kind:
    try:
        return decoder.decode(data[_PREFIX:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed message about membership: {error}") from error
