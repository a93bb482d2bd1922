"""Errors that end a request: between the error tree and the Error frame."""

from __future__ import annotations

from aimo_node.domain.ids import RequestId
from aimo_node.errors import CODED_ERRORS, CodedError, EngineFailed, ErrorCode
from aimo_node.protocol import limits
from aimo_node.protocol.frames import Error

_MILLISECONDS = 1_000


def error_frame(request_id: RequestId, error: CodedError) -> Error:
    """The Error frame that tells the edge about `error`; texts are cut to their bounds."""
    details: dict[str, str] = {}
    if error.param:
        details["param"] = _text(error.param, limits.DETAIL_CHARS_MAX)
    if error.retry_after_seconds is not None:
        milliseconds = round(_bounded(error.retry_after_seconds) * _MILLISECONDS)
        details["retry_after_ms"] = str(milliseconds)
    message = _text(error.message, limits.MESSAGE_CHARS_MAX)
    return Error(int(error.code), message, details, request_id)


def coded_error(frame: Error) -> CodedError:
    """The error that an Error frame tells of; codes of newer versions count as EngineFailed."""
    try:
        kind = CODED_ERRORS[ErrorCode(frame.error_code)]
    except (ValueError, KeyError):
        kind = EngineFailed
    retry_after = frame.details.get("retry_after_ms", "")
    return kind(
        frame.message,
        param=frame.details.get("param"),
        retry_after_seconds=_bounded(int(retry_after) / _MILLISECONDS)
        if retry_after.isdecimal()
        else None,
    )


def _bounded(seconds: float) -> float:
    if not seconds > 0:  # also what is not a number
        return 0.0
    return min(seconds, limits.RETRY_AFTER_SECONDS_MAX)


def _text(text: str, characters_max: int) -> str:
    """Cut, and without lone surrogates: an engine's message may hold what UTF-8 cannot."""
    return text[:characters_max].encode(errors="replace").decode()
