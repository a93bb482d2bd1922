"""The one error tree. Branches say what the caller can do about it.

AimoError
├── RequestError          fix the request
│   ├── InvalidRequest            400  a field is wrong: `param` names it
│   ├── InvalidMessageFormat      400  not JSON, not a frame, not UTF-8
│   ├── ContextLengthExceeded     400  prompt and answer do not fit the model
│   ├── AuthenticationFailed      401
│   ├── PermissionDenied          403
│   ├── ModelNotFound             404  nobody serves that model
│   ├── ProviderNotFound          404  nobody with that peer id
│   ├── PayloadTooLarge           413
│   └── UnsupportedContentType    415
├── TryElsewhere          another provider, or the same one later, may succeed
│   ├── RateLimitExceeded         429
│   ├── EngineFailed              502  the engine died or answered nonsense
│   ├── NetworkError              502  no link, or the link was lost
│   ├── Overloaded                503
│   └── Draining                  503  going away: running requests finish, new ones do not start
├── GiveUp                nothing sensible is left to try
│   ├── RequestCancelled          499
│   ├── InternalError             500  a bug of ours
│   ├── StreamInterrupted         502  lost after the first token
│   └── RequestTimeout            504
├── StartError            the node cannot start: `exit_code`
│   ├── ConfigError               exit 2
│   ├── JoinFailed                exit 3
│   └── EngineStartFailed         exit 4
└── ProtocolError
    ├── LocalProtocolError        we broke the protocol: a bug, raised at once
    └── RemoteProtocolError       they broke it: carries the close code to send
"""

# ruff: noqa: N818 (the names are those of the wire and of the HTTP answers)
from __future__ import annotations

import enum
from typing import ClassVar


class ErrorCode(enum.IntEnum):
    """Error codes on the wire; the names are what consumers and logs see."""

    RequestTimeout = 1
    ProviderNotFound = 2
    InvalidMessageFormat = 3
    NetworkError = 4
    StreamInterrupted = 5
    RateLimitExceeded = 6
    PayloadTooLarge = 7
    UnsupportedContentType = 8
    Overloaded = 9
    InvalidRequest = 10
    ModelNotFound = 11
    ContextLengthExceeded = 12
    EngineFailed = 13
    RequestCancelled = 14
    Draining = 15
    AuthenticationFailed = 16
    PermissionDenied = 17
    InternalError = 18


class CloseCode(enum.IntEnum):
    """Why a link is closed; carried by GoAway."""

    Normal = 0
    ProtocolViolation = 1
    UnknownFrame = 2
    FrameTooLarge = 3
    VersionMismatch = 4
    WrongMesh = 5
    NotAdmitted = 6
    CreditExceeded = 7
    DuplicateLink = 8
    Draining = 9
    TooManyRequests = 10
    HelloTimeout = 11
    PeerSilent = 12


class AimoError(Exception):
    """Root of every error this project raises on purpose."""


class CodedError(AimoError):
    """An error that can end a request, here or at the other end of a link.

    Args:
        message: one sentence for a person, naming the fix where there is one.
        param: path of the offending field, such as ``messages[0].content``.
        retry_after_seconds: when trying again makes sense, if known.
    """

    code: ClassVar[ErrorCode]
    http_status: ClassVar[int]
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class RequestError(CodedError):
    """The caller has to change the request."""


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type or out of range."""

    code = ErrorCode.InvalidRequest
    http_status = 400


class InvalidMessageFormat(RequestError):
    """The bytes are not what they claim to be."""

    code = ErrorCode.InvalidMessageFormat
    http_status = 400


class ContextLengthExceeded(RequestError):
    """Prompt and answer do not fit into the model's context."""

    code = ErrorCode.ContextLengthExceeded
    http_status = 400


class AuthenticationFailed(RequestError):
    """No key, or a key nobody knows."""

    code = ErrorCode.AuthenticationFailed
    http_status = 401


class PermissionDenied(RequestError):
    """The caller is known, but may not do this."""

    code = ErrorCode.PermissionDenied
    http_status = 403


class ModelNotFound(RequestError):
    """No provider in the mesh serves the model."""

    code = ErrorCode.ModelNotFound
    http_status = 404


class ProviderNotFound(RequestError):
    """No provider with that peer id is known."""

    code = ErrorCode.ProviderNotFound
    http_status = 404


class PayloadTooLarge(RequestError):
    """The request or one of its parts is over a limit."""

    code = ErrorCode.PayloadTooLarge
    http_status = 413


class UnsupportedContentType(RequestError):
    """Not a content type this endpoint takes."""

    code = ErrorCode.UnsupportedContentType
    http_status = 415


class TryElsewhere(CodedError):
    """Another provider, or the same one later, may succeed."""

    retryable = True


class RateLimitExceeded(TryElsewhere):
    """Too many requests from this caller."""

    code = ErrorCode.RateLimitExceeded
    http_status = 429


class EngineFailed(TryElsewhere):
    """The engine died, could not be reached or gave an answer nobody can use."""

    code = ErrorCode.EngineFailed
    http_status = 502


class NetworkError(TryElsewhere):
    """The peer cannot be reached, or the link to it was lost."""

    code = ErrorCode.NetworkError
    http_status = 502


class Overloaded(TryElsewhere):
    """The provider is at its limit."""

    code = ErrorCode.Overloaded
    http_status = 503


class Draining(TryElsewhere):
    """The node is going away and starts nothing new."""

    code = ErrorCode.Draining
    http_status = 503


class GiveUp(CodedError):
    """Nothing sensible is left to try."""


class RequestCancelled(GiveUp):
    """The consumer left."""

    code = ErrorCode.RequestCancelled
    http_status = 499


class InternalError(GiveUp):
    """A bug of ours."""

    code = ErrorCode.InternalError
    http_status = 500


class StreamInterrupted(GiveUp):
    """The answer broke off after its first token."""

    code = ErrorCode.StreamInterrupted
    http_status = 502


class RequestTimeout(GiveUp):
    """The request's deadline has passed."""

    code = ErrorCode.RequestTimeout
    http_status = 504


class StartError(AimoError):
    """The node cannot start; `exit_code` is what the program exits with."""

    exit_code: ClassVar[int] = 1


class ConfigError(StartError):
    """Wrong usage or configuration."""

    exit_code = 2


class JoinFailed(StartError):
    """No relay could be joined in time."""

    exit_code = 3


class EngineStartFailed(StartError):
    """The engine did not become ready.

    Args:
        not_installed: a package or program it needs is missing.
    """

    exit_code = 4

    def __init__(self, message: str, *, not_installed: bool = False) -> None:
        super().__init__(message)
        self.not_installed = not_installed


class ProtocolError(AimoError):
    """The wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.

    Args:
        message: what was wrong.
        close_code: what to tell the peer in GoAway.
    """

    def __init__(self, message: str, close_code: CloseCode = CloseCode.ProtocolViolation) -> None:
        super().__init__(message)
        self.close_code = close_code


CODED_ERRORS: dict[ErrorCode, type[CodedError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        InvalidMessageFormat,
        ContextLengthExceeded,
        AuthenticationFailed,
        PermissionDenied,
        ModelNotFound,
        ProviderNotFound,
        PayloadTooLarge,
        UnsupportedContentType,
        RateLimitExceeded,
        EngineFailed,
        NetworkError,
        Overloaded,
        Draining,
        RequestCancelled,
        InternalError,
        StreamInterrupted,
        RequestTimeout,
    )
}
"""Every coded error by its number on the wire."""
