"""Asks a Messages API over HTTP: for an answer, for a count of tokens, for its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgspec

from aimo_node.errors import CodedError, EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON
from providers.anthropic.catalogue import PAGE_ENTRIES_MAX, ModelFacts, read_page
from providers.anthropic.refusals import refusal
from providers.anthropic.request import counted
from providers.anthropic.stream import MessageStream
from providers.anthropic.whole import WholeMessage, write_whole
from providers.http.upstream import (
    REFUSAL_BYTES_MAX,
    Headers,
    Heed,
    Reply,
    Upstream,
    ask_once,
    read_all,
    say_goodbye,
)

WHOLE_TOKENS_MAX: Final = 8_192
"""A longer answer is streamed by the API and put together here: whole ones come after minutes of
silence, in which connections are given up."""

PAGES_MAX: Final = 10
PROBE_SECONDS: Final = 5.0
COUNT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class MessagesApi:
    """One API; any number of tasks may ask at the same time.

    Attributes:
        base: path of the API, such as ``/v1``.
        headers: of every request: key, version, betas.
    """

    upstream: Upstream
    base: str
    headers: Headers = field(repr=False)

    async def ask(
        self, body: Mapping[str, Any], sink: AnswerSink, heed: Heed, *, stream: bool
    ) -> None:
        """Put the answer to a Messages request into `sink`.

        Raises:
            InvalidRequest, ContextLengthExceeded, PayloadTooLarge, ModelNotFound: fix the request.
            Overloaded, EngineFailed: try elsewhere.
            RequestCancelled: the sink gave up.
        """
        streamed = stream or body["max_tokens"] > WHOLE_TOKENS_MAX
        asked = msgspec.json.encode({**body, "stream": streamed})
        path = f"{self.base}/messages"
        async with self.upstream.request("POST", path, asked, self.headers) as reply:
            heed(reply.status, reply.headers)
            if reply.status != 200:
                raise await _refused(reply)
            if not streamed:
                write_whole(await read_all(reply), sink)
            elif reply.headers.get("content-type", "").startswith("application/json"):
                raise EngineFailed("the engine was asked to stream its answer, but does not")
            else:
                await _relay(reply, sink if stream else WholeMessage(sink))

    async def count_tokens(self, body: Mapping[str, Any]) -> int:
        """Tokens of a Messages request's prompt.

        Raises:
            InvalidRequest, ContextLengthExceeded, ModelNotFound, Overloaded, EngineFailed.
        """
        path = f"{self.base}/messages/count_tokens"
        asked = msgspec.json.encode(counted(body))
        status, answer = await ask_once(
            self.upstream, path, asked, timeout_seconds=COUNT_SECONDS, headers=self.headers
        )
        if status != 200:
            raise refusal(status, {}, answer)
        try:
            return msgspec.json.decode(answer, type=_Count).input_tokens
        except NOT_JSON as error:
            raise EngineFailed("the engine's count of tokens is no number") from error

    async def list_models(self) -> tuple[int, list[ModelFacts]]:
        """The HTTP status, and with 200 the models of all pages.

        Raises:
            EngineFailed: no answer.
            EngineStartFailed: an answer that is no list.
        """
        found: list[ModelFacts] = []
        after = ""
        for _ in range(PAGES_MAX):
            path = f"{self.base}/models?limit={PAGE_ENTRIES_MAX}"
            path += f"&after_id={quote(after, safe='')}" if after else ""
            status, answer = await ask_once(
                self.upstream, path, timeout_seconds=PROBE_SECONDS, headers=self.headers
            )
            if status != 200:
                return status, []
            page, after = read_page(answer)
            found += page
            if not after:
                break
        return 200, found


class _Count(msgspec.Struct):
    input_tokens: int


async def _refused(reply: Reply) -> CodedError:
    return refusal(reply.status, reply.headers, await read_all(reply, REFUSAL_BYTES_MAX))


async def _relay(reply: Reply, sink: AnswerSink) -> None:
    answer = MessageStream(sink)

    def feed(data: bytes) -> bool:
        answer.feed(data)
        return not (answer.done or sink.congested)

    while await reply.pour(feed) and not answer.done:
        await sink.drain()
    sink.finish(*answer.end())
    await say_goodbye(reply)
