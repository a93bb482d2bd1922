"""What llama.cpp is asked: one body for each answer of a request, and how its refusals read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from aimo_node.domain.ids import Endpoint
from aimo_node.errors import ContextLengthExceeded, InvalidRequest
from aimo_node.ports.engine import EngineRequest
from providers.answers import NOT_JSON
from providers.http.upstream import REFUSAL_BYTES_MAX, Headers, Reply, Upstream, read_all

ANSWERS_MAX: Final = 128
"""To one request; OpenAI's own bound for ``n``. They come one after another."""

PATHS: Final = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.COMPLETIONS: "/v1/completions",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}
_ASKED_IN: Final = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
}
_RENAMED: Final = {"repetition_penalty": "repeat_penalty"}
"""vLLM's name, and llama.cpp's."""

_UNKNOWN_TO_LLAMA: Final = ("echo", "suffix")
"""It would leave them out without a word."""

_STREAMED: Final[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}


def answer_bodies(request: EngineRequest) -> list[dict[str, Any]]:
    """A body for each answer that a chat or completions request asks for, in their order.

    Raises:
        InvalidRequest: it asks for too many answers, or for what llama.cpp cannot do.
    """
    asked = {_RENAMED.get(name, name): value for name, value in request.body.items()}
    for name in _UNKNOWN_TO_LLAMA:
        if asked.get(name):
            raise InvalidRequest(f"{name} is not supported by the llama engine", param=name)
    number = asked.pop("n", 1)
    prompts = prompts_of(asked) if request.endpoint is Endpoint.COMPLETIONS else []
    if not isinstance(number, int) or not 1 <= number * max(1, len(prompts)) <= ANSWERS_MAX:
        raise InvalidRequest(f"one request may ask for 1 to {ANSWERS_MAX} answers", param="n")
    asked = {**asked, **_STREAMED}
    bodies = [{**asked, "prompt": prompt} for prompt in prompts] or [asked]
    return [_seeded(body, turn) for body in bodies for turn in range(number)]


def embeddings_body(request: EngineRequest, numbers: int) -> dict[str, Any]:
    """What to ask for embeddings.

    Args:
        numbers: of a vector of this model; 0 if unknown.

    Raises:
        InvalidRequest: it asks for shorter vectors.
    """
    body = dict(request.body)
    wanted = body.pop("dimensions", numbers)
    if wanted != numbers:
        size = f"{numbers} dimensions" if numbers else "a fixed number of dimensions"
        raise InvalidRequest(
            f"embeddings of this model have {size} and cannot be shortened", param="dimensions"
        )
    return body


def prompts_of(body: Mapping[str, Any]) -> list[Any]:
    """The prompts or inputs of a request: texts, or lists of token numbers.

    Raises:
        InvalidRequest: one of them is empty.
    """
    field = "prompt" if "prompt" in body else "input"
    given = body.get(field)
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    prompts = given if isinstance(given, list) and several else [given]
    if not prompts or not all(prompts):
        raise InvalidRequest(f"{field} must not be empty", param=field)
    return prompts


def _seeded(body: dict[str, Any], turn: int) -> dict[str, Any]:
    """The same seed again would give the same answer again."""
    seed = body.get("seed")
    return {**body, "seed": seed + turn} if turn and isinstance(seed, int) else body


_TOO_LARGE: Final = re.compile(
    r"input \((\d{1,9}) tokens\) is too large to process.*batch size: (\d{1,9})\)"
)
"""What it says of a text to embed; the batch size is set to the context's."""


class OverflowTold:
    """An upstream that says in numbers by how much a request is too long. Made for one request.

    Args:
        upstream: llama.cpp.
    """

    def __init__(self, upstream: Upstream, request: EngineRequest) -> None:
        self._upstream = upstream
        self._request = request

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator[Reply]:
        """See `Upstream`.

        Raises:
            ContextLengthExceeded: the prompt is too long.
        """
        async with self._upstream.request(method, path, body, headers) as reply:
            if reply.status not in {400, 500}:
                yield reply
                return
            refusal = await read_all(reply, REFUSAL_BYTES_MAX)
            self._raise_overflow(refusal)
            yield _ReadReply(reply.status, reply.headers, refusal)

    async def aclose(self) -> None:
        """The upstream belongs to somebody else."""

    def _raise_overflow(self, refusal: bytes) -> None:
        found = _read_overflow(refusal)
        if found is None:
            return
        prompt_tokens, context_tokens = found
        body = self._request.body
        wanted = body.get("max_completion_tokens") or body.get("max_tokens")
        more = f" and max_tokens asks for {wanted} more" if wanted else ""
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens{more}, but the context of "
            f"{self._request.model} is {context_tokens} tokens",
            param=_ASKED_IN[self._request.endpoint],
        )


class _ReadReply:
    """A reply whose body has been read already; see `Reply`."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def receive(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def pour(self, feed: Callable[[bytes], bool]) -> bool:
        return bool(self._body) and not feed(await self.receive())


class _Refusal(msgspec.Struct):
    """llama.cpp's error; the numbers are there for a prompt that does not fit."""

    type: str = ""
    message: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Refused(msgspec.Struct):
    error: _Refusal


_read_refusal: Final = msgspec.json.Decoder(_Refused).decode


def _read_overflow(refusal: bytes) -> Sequence[int] | None:
    """Tokens of the prompt and of the context, if that is what it is about."""
    try:
        error = _read_refusal(refusal).error
    except NOT_JSON:
        return None
    if error.type == "exceed_context_size_error":
        return error.n_prompt_tokens, error.n_ctx
    found = _TOO_LARGE.search(error.message)
    return (int(found[1]), int(found[2])) if found else None
