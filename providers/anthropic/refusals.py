"""Turns the errors of the Messages API into ours, whether they come as a status or in a stream.

What the owner has to mend – key, bill, access – is never put to the consumer, and is told without
the API's own words, which may quote the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aimo_node.errors import (
    CodedError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
)
from providers.answers import NOT_JSON, one_line
from providers.upstreams.rate_limits import retry_after_seconds

_TYPE_OF_STATUS: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Where the body does not say, as from a proxy before the API."""

_OWNERS: Final[Mapping[str, str]] = {
    "authentication_error": "the engine's upstream refuses the credentials of its owner",
    "permission_error": "the engine's upstream refuses the credentials of its owner",
    "billing_error": "the engine's upstream wants its owner to look after the bill",
}
_OWNERS_WORDS: Final = re.compile(
    r"credit balance|organization has been|billing|spend limit|usage limits", re.IGNORECASE
)
"""In errors that are called invalid requests, but which no request would avoid."""

_CONTEXT_WORDS: Final = re.compile(
    r"prompt is too long|context (limit|window|length)", re.IGNORECASE
)
_TOO_LONG: Final = re.compile(r"prompt is too long: (\d+) tokens > (\d+)")
_TOO_LONG_TOGETHER: Final = re.compile(r"context limit: (\d+) \+ (\d+) > (\d+)")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> CodedError:
    """The error that an HTTP status other than 200 means."""
    kind, message = _read_error(body)
    known = kind if kind in _TYPE_OF_STATUS.values() else _TYPE_OF_STATUS.get(status, "")
    return _error(known, message, retry_after_seconds(headers)) or EngineFailed(
        f"the engine answered with HTTP status {status}"
    )


def failure_in_stream(error: object, *, started: bool) -> CodedError:
    """The error that an ``error`` event means.

    Args:
        started: part of the answer has gone on; then it can only have broken off.
    """
    broken_off = EngineFailed("the engine reported an error in the middle of its answer")
    if started or not isinstance(error, dict):
        return broken_off
    kind, message = _kind_and_message(error)
    return _error(kind, message, None) or broken_off


def _error(kind: str, message: str, retry_after: float | None) -> CodedError | None:
    """None for what is the API's own trouble."""
    error: CodedError | None = EngineFailed(_OWNERS[kind]) if kind in _OWNERS else None
    match kind:
        case "invalid_request_error" if _OWNERS_WORDS.search(message):
            error = EngineFailed("the engine's upstream refuses to serve its owner")
        case "invalid_request_error" if _CONTEXT_WORDS.search(message):
            error = ContextLengthExceeded(_too_long(message), param="messages")
        case "invalid_request_error":
            error = InvalidRequest(message or "the engine refuses the request without a reason")
        case "not_found_error":
            error = ModelNotFound("the engine does not know the model")
        case "request_too_large":
            error = PayloadTooLarge("the request is too large for the engine")
        case "rate_limit_error":
            error = Overloaded(
                "the engine's upstream has had enough requests of its owner for now",
                retry_after_seconds=retry_after,
            )
        case "overloaded_error":
            error = Overloaded("the engine's upstream is busy", retry_after_seconds=retry_after)
    return error


def _too_long(message: str) -> str:
    if found := _TOO_LONG.search(message):
        return f"the prompt has {found[1]} tokens, the model takes {found[2]}"
    if found := _TOO_LONG_TOGETHER.search(message):
        return (
            f"the prompt has {found[1]} tokens, which with max_tokens of {found[2]} is more than"
            f" the {found[3]} of the model"
        )
    return message


def _read_error(body: bytes) -> tuple[str, str]:
    """Type and message of an error in the API's shape; empty if it has another."""
    try:
        answer = msgspec.json.decode(body)
    except NOT_JSON:
        return "", ""
    error = answer.get("error") if isinstance(answer, dict) else None
    return _kind_and_message(error) if isinstance(error, dict) else ("", "")


def _kind_and_message(error: Mapping[str, Any]) -> tuple[str, str]:
    kind, message = error.get("type"), error.get("message")
    return (
        kind if isinstance(kind, str) else "",
        one_line(message) if isinstance(message, str) else "",
    )
