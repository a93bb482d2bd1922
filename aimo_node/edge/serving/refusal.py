"""Answers the server gives itself, because the request never becomes one for the application."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from aimo_node.edge.problem import Problem

RETRY_AFTER_SECONDS = 1
"""For a lack of room: it passes as soon as one of the running requests ends."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal: status, a code for programs and one sentence for a person."""

    status: HTTPStatus
    code: str
    message: str

    def encode(self) -> bytes:
        """The whole answer; the connection closes after it."""
        is_ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if is_ours else "invalid_request_error"
        body = Problem(self.status, self.message, kind, code=self.code).body
        retry = b""
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            retry = b"retry-after: %d\r\n" % RETRY_AFTER_SECONDS
        return (
            b"HTTP/1.1 %d %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
        ) % (self.status, self.status.phrase.encode(), len(body), retry, body)


MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "malformed_request", "Not a valid HTTP/1.1 request.")
TWO_LENGTHS = Refusal(
    HTTPStatus.BAD_REQUEST,
    "malformed_request",
    "Content-Length and Transfer-Encoding exclude each other.",
)
BAD_HOST = Refusal(HTTPStatus.BAD_REQUEST, "malformed_request", "The Host header is not a host.")
BAD_TARGET = Refusal(
    HTTPStatus.BAD_REQUEST, "malformed_request", "The request target has to start with a slash."
)
TOO_SLOW = Refusal(
    HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request took too long to arrive."
)
HEADERS_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The headers are too large."
)
NOT_IMPLEMENTED = Refusal(
    HTTPStatus.NOT_IMPLEMENTED, "not_implemented", "Only chunked transfer encoding is known."
)
APPLICATION_FAILED = Refusal(
    HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "The node failed to answer."
)
UNKNOWN_VERSION = Refusal(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "http_version", "HTTP/1.1 is spoken here."
)
NO_ROOM = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "Too many connections or bodies at this moment."
)


def body_too_large(bytes_max: int) -> Refusal:
    """The body is over `bytes_max` bytes."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "payload_too_large",
        f"The body is over {bytes_max} bytes.",
    )


_BY_PARSER_HINT = {
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: HEADERS_TOO_LARGE,
    HTTPStatus.NOT_IMPLEMENTED: NOT_IMPLEMENTED,
}


def from_parser(status_hint: int) -> Refusal:
    """The refusal for what h11 could not parse."""
    return _BY_PARSER_HINT.get(HTTPStatus(status_hint), MALFORMED)
