"""What a stranger may ask of an engine: allow-listed parameters, clamped to sane ranges.

The provider applies this, whatever the edge has checked: an edge is a stranger too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aimo_node.domain.ids import Endpoint
from aimo_node.errors import InvalidMessageFormat, InvalidRequest

MESSAGES_MAX: Final = 2_048
STOPS_MAX: Final = 16
CHOICES_MAX: Final = 8
TOOLS_MAX: Final = 128
INPUTS_MAX: Final = 2_048
TOKENS_MAX: Final = 1_048_576
"""Above any context there is; the engine knows its own."""

_decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode
_MEDIA_FIELDS: Final = ("image_url", "input_audio", "video_url", "audio_url", "file")
_REMOTE_FIELDS: Final = ("url", "file_id", "file_url")


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """What the provider's owner allows.

    Attributes:
        tokens_max: the most a request may generate; 0 leaves it to the engine.
        media_domains: hosts from which the engine may fetch media; empty refuses remote media.
    """

    tokens_max: int = 0
    media_domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that is pulled into its range."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, name: str, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{name} must be a number", param=name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{name} must be a number", param=name)
        if self.whole and value != int(value):
            raise InvalidRequest(f"{name} must be a whole number", param=name)
        clamped = min(max(value, self.low), self.high)
        return int(clamped) if self.whole else clamped


def _flag(name: str, value: object) -> object:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _text(name: str, value: object) -> object:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string", param=name)
    return value


def _mapping(name: str, value: object) -> object:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object", param=name)
    return value


def _either(name: str, value: object) -> object:
    if not isinstance(value, str | dict):
        raise InvalidRequest(f"{name} must be a string or an object", param=name)
    return value


def _stops(name: str, value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest(f"{name} must be a string or a list of strings", param=name)
    if len(stops) > STOPS_MAX:
        raise InvalidRequest(f"{name} may have at most {STOPS_MAX} entries", param=name)
    return stops


def _objects(most: int) -> Callable[[str, object], object]:
    def check(name: str, value: object) -> object:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InvalidRequest(f"{name} must be a list of objects", param=name)
        if len(value) > most:
            raise InvalidRequest(f"{name} may have at most {most} entries", param=name)
        return value

    return check


def _prompt(name: str, value: object) -> object:
    if not isinstance(value, str | list):
        raise InvalidRequest(f"{name} must be a string or a list", param=name)
    if isinstance(value, list) and len(value) > INPUTS_MAX:
        raise InvalidRequest(f"{name} may have at most {INPUTS_MAX} entries", param=name)
    return value


_Check = Callable[[str, object], object]
_TOKENS: Final = _Number(1, TOKENS_MAX, whole=True)
_SAMPLING: Final[dict[str, _Check]] = {
    "max_tokens": _TOKENS,
    "temperature": _Number(0, 2),
    "top_p": _Number(0, 1),
    "top_k": _Number(-1, 1_000, whole=True),
    "min_p": _Number(0, 1),
    "frequency_penalty": _Number(-2, 2),
    "presence_penalty": _Number(-2, 2),
    "repetition_penalty": _Number(0.01, 2),
    "seed": _Number(-(2**63), 2**63 - 1, whole=True),
    "n": _Number(1, CHOICES_MAX, whole=True),
    "stop": _stops,
    "logit_bias": _mapping,
    "aimo": _mapping,
}
ALLOWED: Final[Mapping[Endpoint, Mapping[str, _Check]]] = {
    Endpoint.CHAT: {
        **_SAMPLING,
        "messages": _objects(MESSAGES_MAX),
        "max_completion_tokens": _TOKENS,
        "tools": _objects(TOOLS_MAX),
        "tool_choice": _either,
        "parallel_tool_calls": _flag,
        "response_format": _mapping,
        "logprobs": _flag,
        "top_logprobs": _Number(0, 20, whole=True),
        "reasoning_effort": _text,
    },
    Endpoint.COMPLETIONS: {
        **_SAMPLING,
        "prompt": _prompt,
        "suffix": _text,
        "echo": _flag,
        "logprobs": _Number(0, 5, whole=True),
    },
    Endpoint.EMBEDDINGS: {
        "input": _prompt,
        "dimensions": _Number(1, 65_536, whole=True),
        "encoding_format": _text,
    },
    Endpoint.IMAGES: {
        "prompt": _text,
        "size": _text,
        "n": _Number(1, CHOICES_MAX, whole=True),
        "seed": _SAMPLING["seed"],
        "response_format": _text,
    },
}
"""Parameters that reach an engine, by endpoint; everything else is left out."""

_REQUIRED: Final = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
    Endpoint.IMAGES: "prompt",
}


def read_parameters(endpoint: Endpoint, body: bytes) -> tuple[str, dict[str, Any]]:
    """The model's name and what an engine may see of the request; see also `hold_to_limits`.

    Raises:
        InvalidMessageFormat: not a JSON object.
        InvalidRequest: a parameter is wrong; names the field.
    """
    values = _read_object(body)
    model = values.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model must be a non-empty string", param="model")
    required = _REQUIRED[endpoint]
    if values.get(required) in (None, [], ""):
        raise InvalidRequest(f"{required} must not be empty", param=required)
    allowed = ALLOWED[endpoint]
    return model, {
        name: allowed[name](name, value)
        for name, value in values.items()
        if name in allowed and value is not None
    }


def hold_to_limits(endpoint: Endpoint, kept: dict[str, Any], limits: OwnerLimits) -> None:
    """Apply to parameters in place what the owner of the engine allows.

    Raises:
        InvalidRequest: remote media is not allowed; names the field.
    """
    for message_path, part in _media_parts(kept.get("messages", ())):
        _check_media(message_path, part, limits)
    if limits.tokens_max:
        for name in ("max_tokens", "max_completion_tokens"):
            if name in kept:
                kept[name] = min(kept[name], limits.tokens_max)
        if "max_completion_tokens" not in kept and endpoint is not Endpoint.EMBEDDINGS:
            kept.setdefault("max_tokens", limits.tokens_max)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        values = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageFormat(f"the request is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidMessageFormat("the request is not a JSON object")
    return values


def _media_parts(messages: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every content part with its path, whatever type it says it has.

    Raises:
        InvalidRequest: content of a shape in which an engine might find what is not looked at here.
    """
    if not isinstance(messages, list | tuple):
        return
    for index, message in enumerate(messages):
        content = message.get("content")
        path = f"messages[{index}].content"
        if isinstance(content, list):
            for place, part in enumerate(content):
                if isinstance(part, dict):
                    yield f"{path}[{place}]", part
                elif not isinstance(part, str):
                    raise InvalidRequest(f"{path}[{place}] must be an object", param=path)
        elif not isinstance(content, str | None):
            raise InvalidRequest(f"{path} must be a string or a list of parts", param=path)


def _check_media(path: str, part: dict[str, Any], limits: OwnerLimits) -> None:
    """Refuse what an engine would fetch from the owner's network."""
    for name in _MEDIA_FIELDS:
        if name not in part:
            continue
        value = part[name]
        locations = (
            {key: value[key] for key in _REMOTE_FIELDS if key in value}
            if isinstance(value, dict)
            else {"": value}
        )
        for key, location in locations.items():
            where = f"{path}.{name}.{key}".rstrip(".")
            if not isinstance(location, str):
                raise InvalidRequest(f"{where} must be a string", param=where)
            if not location.startswith("data:") and _host(location) not in limits.media_domains:
                raise InvalidRequest(
                    "this provider does not fetch remote media: send it as a data: URL",
                    param=where,
                )


def _host(url: str) -> str:
    """The host of an http(s) URL, empty for anything else or anything odd."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "https"):
        return ""
    authority = rest.split("/", 1)[0].split("?", 1)[0].split("#", 1)[0]
    if "@" in authority or "\\" in authority:
        return ""
    return authority.rsplit(":", 1)[0].lower()
