"""A consumer's JSON: decoded once, bounded in depth, and errors that name the offending field."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from aimo_node.errors import InvalidMessageFormat, InvalidRequest

JSON_DEPTH_MAX: Final = 64
"""Nested arrays and objects. Tools' schemas reach 20; decoders behind us recurse per level."""

Model = TypeVar("Model")

_decode = msgspec.json.Decoder().decode
_MISSING: Final = "Object missing required field "


def decode_object(body: bytes | str) -> dict[str, Any]:
    """The JSON object in `body`. Of a name given twice the last counts, here and downstream.

    Raises:
        InvalidMessageFormat: not UTF-8, not JSON, not an object, or too deep.
    """
    try:
        value = _decode(body)
    except UnicodeDecodeError as error:
        raise InvalidMessageFormat("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise _too_deep() from error
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidMessageFormat(f"The body is not valid JSON: {error}.") from error
    if type(value) is not dict:
        raise InvalidMessageFormat("The body has to be a JSON object.")
    if is_too_deep(value, body):
        raise _too_deep()
    return value


def is_too_deep(value: object, data: bytes | str) -> bool:
    """Whether `value`, decoded from `data`, nests over `JSON_DEPTH_MAX` levels."""
    # each level takes one bracket, so few brackets need no walk
    if isinstance(data, str):
        brackets = data.count("[") + data.count("{")
    else:
        brackets = data.count(b"[") + data.count(b"{")
    return brackets > JSON_DEPTH_MAX and _is_deeper(value, JSON_DEPTH_MAX)


def encode_object(value: dict[str, Any]) -> bytes:
    """Canonical bytes of what `decode_object` returned: what was checked is what is sent.

    Raises:
        InvalidMessageFormat: a number no JSON decoder behind us would take.
    """
    try:
        return msgspec.json.encode(value)
    except (OverflowError, ValueError, RecursionError) as error:
        raise InvalidMessageFormat(f"The body cannot be passed on: {error}.") from error


def check(value: object, model: type[Model], prefix: str = "") -> Model:
    """Read `value` as a `model`.

    Args:
        prefix: where `value` stands in what the consumer sent, such as ``body``.

    Raises:
        InvalidRequest: it does not fit; ``param`` names the field.
    """
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise offence(str(error), prefix) from error


def offence(text: str, prefix: str = "") -> InvalidRequest:
    """msgspec's complaint as OpenAI would put it, with the path of the field."""
    what, _, path = text.partition(" - at `$")
    path = path.removesuffix("`")
    missing = what.removeprefix(_MISSING)
    if missing != what:
        param = _join(prefix, path, missing.strip("`"))
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    param = _join(prefix, path)
    if not param:
        return InvalidRequest(f"Invalid request: {_lower_first(what)}.")
    return InvalidRequest(f"Invalid value for '{param}': {_lower_first(what)}.", param=param)


def _join(*pieces: str) -> str:
    path = ""
    for piece in pieces:
        bare = piece.removeprefix(".")
        path += bare if not path or piece.startswith("[") else f".{bare}" if bare else ""
    return path.replace("[...]", "")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _too_deep() -> InvalidMessageFormat:
    return InvalidMessageFormat(f"The body nests deeper than {JSON_DEPTH_MAX} levels.")


def _is_deeper(value: object, levels: int) -> bool:
    """Whether arrays and objects nest over `levels`, without recursing."""
    layer: list[Any] = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for item in layer:
            members = item.values() if type(item) is dict else item
            inner.extend(member for member in members if type(member) in {dict, list})
        if not inner:
            return False
        layer = inner
    return True
