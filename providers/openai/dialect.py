"""Asks an OpenAI-compatible server and turns its refusals into our errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio

from aimo_node.domain.ids import FinishReason
from aimo_node.errors import (
    CodedError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
)
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON, one_line
from providers.http.upstream import (
    REFUSAL_BYTES_MAX,
    AnswerTooLong,
    Headers,
    Heed,
    Reply,
    Upstream,
    read_all,
    say_goodbye,
    wall_clock,
)
from providers.openai.data import DataAnswer, inputs_of, too_much_data
from providers.openai.stream import AnswerStream
from providers.openai.whole import write_whole
from providers.upstreams.rate_limits import retry_after_seconds

_CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT_WORDS: Final = re.compile(
    r"context (length|size|window)|maximum (context|input)|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_UNSUPPORTED_WORDS: Final = re.compile(
    r"\b(is|are) not supported\b|does not support", re.IGNORECASE
)


async def ask(
    upstream: Upstream,
    path: str,
    body: Mapping[str, Any],
    sink: AnswerSink,
    *,
    headers: Headers = (),
    heed: Heed | None = None,
) -> None:
    """Ask for an answer, streamed if ``body["stream"]`` says so, and put it into `sink`.

    Raises:
        InvalidRequest, ContextLengthExceeded, PayloadTooLarge, ModelNotFound: fix the request.
        Overloaded, EngineFailed: try elsewhere.
        RequestCancelled: the sink gave up.
    """
    async with upstream.request("POST", path, msgspec.json.encode(body), headers) as reply:
        await _check(reply, heed)
        if not body.get("stream"):
            write_whole(await read_all(reply), sink)
        elif reply.headers.get("content-type", "").startswith("application/json"):
            raise EngineFailed("the engine was asked to stream its answer, but does not")
        else:
            await _relay(reply, sink)


async def ask_data(
    upstream: Upstream,
    path: str,
    body: Mapping[str, Any],
    sink: AnswerSink,
    *,
    headers: Headers = (),
    heed: Heed | None = None,
) -> None:
    """Ask for embeddings or images, never streamed, and put ``data`` and the end into `sink`.

    Args:
        body: an embeddings request has ``input``; as many vectors must come back.

    Raises:
        InvalidRequest: also when the answer is longer than what the mesh carries.
        ContextLengthExceeded, PayloadTooLarge, ModelNotFound: fix the request.
        Overloaded, EngineFailed: try elsewhere.
    """
    async with upstream.request("POST", path, msgspec.json.encode(body), headers) as reply:
        await _check(reply, heed)
        try:
            answer = DataAnswer(await read_all(reply), inputs_of(body))
        except AnswerTooLong as error:
            raise too_much_data() from error
    for _ in answer.read():
        await trio.lowlevel.checkpoint()
    sink.json(answer.data())
    sink.finish(FinishReason.STOP, answer.usage)


async def _check(reply: Reply, heed: Heed | None) -> None:
    if heed is not None:
        heed(reply.status, reply.headers)
    if reply.status != 200:
        page = await read_all(reply, REFUSAL_BYTES_MAX)
        raise refusal(reply.status, reply.headers, page, epoch=wall_clock())


async def _relay(reply: Reply, sink: AnswerSink) -> None:
    answer = AnswerStream(sink)

    def feed(data: bytes) -> bool:
        answer.feed(data)
        return not (answer.done or sink.congested)

    # The first token is waited for alone: together with others it might have to wait for them.
    while not answer.begun and (data := await reply.receive()):
        answer.feed(data)
    while not answer.done and await reply.pour(feed):
        if not answer.done:
            await sink.drain()
    sink.finish(*answer.end())
    await say_goodbye(reply)


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, *, epoch: float | None = None
) -> CodedError:
    """The error that an HTTP status other than 200 means.

    Args:
        epoch: seconds since 1970, to understand a Retry-After that is a date.
    """
    code, message = _read_error(body)
    error: CodedError = EngineFailed(f"the engine answered with HTTP status {status}")
    match status:
        case 400 | 413 | 422 if code in _CONTEXT_CODES or _CONTEXT_WORDS.search(message):
            error = ContextLengthExceeded(message, param="messages")
        case 400 | 422:
            error = InvalidRequest(message or "the engine refuses the request without a reason")
        case 413:
            error = PayloadTooLarge("the request is too large for the engine")
        case 401 | 403:
            # The owner's key is wrong, not the consumer's; the upstream's text may quote it.
            error = EngineFailed("the engine's upstream refuses the credentials of its owner")
        case 404:
            error = ModelNotFound("the engine does not know the model")
        case 429 | 503:
            seconds = retry_after_seconds(headers, epoch)
            error = Overloaded("the engine is busy", retry_after_seconds=seconds)
        case 500 | 501 if _UNSUPPORTED_WORDS.search(message):
            # llama.cpp answers so when a request needs what the model cannot do.
            error = InvalidRequest(message)
    return error


def _read_error(body: bytes) -> tuple[str, str]:
    """Code and message of an error in one of the usual shapes; empty if there is none."""
    try:
        answer = msgspec.json.decode(body)
    except NOT_JSON:
        return "", ""
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return "", ""
    codes = [error.get("code"), error.get("type")]
    code = next((one for one in codes if isinstance(one, str) and one in _CONTEXT_CODES), "")
    message = error.get("message")
    return code, one_line(message) if isinstance(message, str) else ""
