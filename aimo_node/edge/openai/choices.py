"""The JSON that providers send: read strictly, reduced to the fields OpenAI knows."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import msgspec

from aimo_node.edge.json_body import is_too_deep
from aimo_node.errors import EngineFailed

FinishText = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChoiceDelta(msgspec.Struct):
    """One choice of a piece of a streamed answer; what else is sent in it is left out."""

    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None = None
    finish_reason: FinishText | None = None


class WholeChoice(msgspec.Struct):
    """One choice of an answer that is not streamed; what else is sent in it is left out."""

    message: dict[str, Any]
    index: int = 0
    logprobs: dict[str, Any] | None = None
    finish_reason: FinishText | None = None


Choice = TypeVar("Choice", ChoiceDelta, WholeChoice)

_encode: Final = msgspec.json.Encoder().encode
_deltas: Final = msgspec.json.Decoder(list[ChoiceDelta])
_wholes: Final = msgspec.json.Decoder(list[WholeChoice])


def decode_deltas(data: bytes) -> list[ChoiceDelta]:
    """The choices of a piece of a streamed answer.

    Raises:
        EngineFailed: not JSON of that shape.
    """
    return _decode(_deltas, data)


def decode_wholes(data: bytes) -> list[WholeChoice]:
    """The choices of an answer that is not streamed.

    Raises:
        EngineFailed: not JSON of that shape.
    """
    return _decode(_wholes, data)


def encode_checked(value: object) -> bytes:
    """JSON of a value that a provider's bytes were decoded to.

    Raises:
        EngineFailed: it cannot be written again, such as a number of thousands of digits.
    """
    try:
        return _encode(value)
    except (OverflowError, ValueError, RecursionError) as error:
        raise EngineFailed("The provider sent a value that cannot be passed on.") from error


def _decode(decoder: msgspec.json.Decoder[list[Choice]], data: bytes) -> list[Choice]:
    try:
        choices = decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EngineFailed("The provider sent malformed choices.") from error
    # a consumer's own decoder recurses, too
    if is_too_deep([list(msgspec.structs.astuple(choice)) for choice in choices], data):
        raise EngineFailed("The provider sent choices that nest too deep.")
    return choices
