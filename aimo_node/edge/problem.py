"""The only place that turns errors into responses, in the shape OpenAI's clients read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import WebsocketMismatch

from aimo_node.errors import (
    AuthenticationFailed,
    CodedError,
    ErrorCode,
    InternalError,
    PermissionDenied,
    RateLimitExceeded,
    RequestError,
)

RETRY_AFTER_SECONDS: Final[dict[ErrorCode, int]] = {
    ErrorCode.Overloaded: 1,
    ErrorCode.RateLimitExceeded: 1,
    # another node behind the same name answers at once, this one comes back in seconds
    ErrorCode.Draining: 5,
}
"""What is said where the error itself does not know when to come back."""


def _consumer_code(code: ErrorCode) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code.name).lower()


_CODES: Final = {code: _consumer_code(code) for code in ErrorCode} | {
    # the name every OpenAI client knows
    ErrorCode.AuthenticationFailed: "invalid_api_key"
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a consumer sees it.

    Attributes:
        code: the error's name in snake case, such as ``model_not_found``.
        headers: lower-case name and value, beside those of the body.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def error(self) -> dict[str, Any]:
        """What stands under ``error``."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }

    @property
    def body(self) -> bytes:
        """The JSON body of the response."""
        return msgspec.json.encode({"error": self.error})

    @property
    def event(self) -> bytes:
        """The last event of a stream that fails after its head has gone out."""
        return b"data: %b\n\n" % self.body


def respond_with(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response that carries a problem, with further headers."""
    return Response(
        problem.body,
        problem.status,
        {**dict(problem.headers), **(headers or {})},
        content_type="application/json",
    )


def problem_of(error: CodedError) -> Problem:
    """The consumer's view of one of our errors."""
    headers: tuple[tuple[str, str], ...] = ()
    retry_after = error.retry_after_seconds
    if retry_after is None:
        retry_after = RETRY_AFTER_SECONDS.get(error.code)
    if retry_after is not None:
        headers = (("retry-after", str(max(1, math.ceil(retry_after)))),)
    if isinstance(error, AuthenticationFailed):
        headers = (("www-authenticate", "Bearer"),)
    return Problem(
        error.http_status,
        error.message,
        _type_of(error),
        error.param,
        _CODES[error.code],
        headers,
    )


def _type_of(error: CodedError) -> str:
    if isinstance(error, PermissionDenied):
        return "permission_error"
    if isinstance(error, RequestError):
        return "invalid_request_error"
    if isinstance(error, RateLimitExceeded):
        return "rate_limit_error"
    return "server_error"


def problem_of_http(error: HTTPException, method: str, path: str) -> Problem:
    """The consumer's view of what Quart refused: no such route, wrong method, no handshake."""
    status = error.code or 500
    if status >= 500:
        return problem_of(InternalError("The node failed to answer; its log says why."))
    allow: tuple[tuple[str, str], ...] = ()
    if status == 404:
        message = f"Unknown address: {method} {path}"
    elif isinstance(error, MethodNotAllowed):
        methods = sorted(error.valid_methods or ())
        message = f"Not allowed to {method} {path}; use {' or '.join(methods)}."
        allow = (("allow", ", ".join(methods)),)
    elif isinstance(error, WebsocketMismatch):
        message = (
            f"Wrong kind of connection for {path}: /v1/stream is a WebSocket, all else is not."
        )
    else:
        message = error.description or error.name
    return Problem(status, message, "invalid_request_error", headers=allow)
