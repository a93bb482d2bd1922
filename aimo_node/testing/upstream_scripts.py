"""Scripts for the stand-in upstream: honest answers, and every way of failing seen in the wild."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from aimo_node.testing.upstream import Die, Pause, Script, Step, Whole

WORDS: Final = ("Naïve ", "answers ", "cost ", "5 € ", "and ", "a 🙂 ", "too.")
"""The usual answer; it has characters of two, three and four bytes."""

DONE: Final = b"data: [DONE]\n\n"
PAUSE_SECONDS: Final = 0.005


def event(value: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Mapping[str, Any], reason: str | None = None, index: int = 0) -> bytes:
    """One chunk with one choice."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def text(content: str) -> bytes:
    """A chunk of plain text."""
    return chunk({"content": content})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The last chunk when usage was asked for: it has no choices."""
    return event({"choices": [], "usage": _usage(prompt_tokens, completion_tokens)})


def answer(words: Iterable[str] = WORDS, reason: str = "stop") -> Script:
    """`words`, at most ``max_tokens`` of them, streamed or whole as the request asks."""
    every = tuple(words)

    def script(body: Mapping[str, Any]) -> Iterator[Step]:
        limit = body.get("max_tokens") or len(every)
        said = every[:limit]
        ending = "length" if limit < len(every) else reason
        prompt_tokens = len(str(body.get("messages")).split())
        if not body.get("stream"):
            yield whole("".join(said), ending, prompt_tokens, len(said))
            return
        yield chunk({"role": "assistant", "content": ""})
        yield from (text(word) for word in said)
        yield chunk({}, ending)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield usage(prompt_tokens, len(said))
        yield DONE

    return script


def whole(content: str, reason: str, prompt_tokens: int = 1, completion_tokens: int = 1) -> Whole:
    """An answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    counted = _usage(prompt_tokens, completion_tokens)
    return Whole(200, json.dumps({"choices": [choice], "usage": counted}).encode())


def embeddings(dimensions: int = 3) -> Script:
    """Vectors of the asked or of so many dimensions; the first number tells which input it is."""

    def script(body: Mapping[str, Any]) -> Iterator[Step]:
        given = body.get("input")
        several = isinstance(given, list) and given and not isinstance(given[0], int)
        texts = given if isinstance(given, list) and several else [given]
        size = body.get("dimensions") or dimensions
        vectors = [[float(index), *[0.5] * (size - 1)] for index in range(len(texts))]
        packed = body.get("encoding_format") == "base64"
        entries = [
            {"object": "embedding", "index": index, "embedding": _pack(one) if packed else one}
            for index, one in enumerate(vectors)
        ]
        counted = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        answer = {"object": "list", "data": entries, "model": body["model"], "usage": counted}
        yield Whole(200, json.dumps(answer).encode())

    return script


def models(*entries: str | Mapping[str, Any]) -> Script:
    """A list of models; a bare name is an entry of which nothing more is said."""
    listed = [{"id": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
    return exactly(Whole(200, json.dumps({"object": "list", "data": listed}).encode()))


def exactly(*steps: Step) -> Script:
    """The same steps whatever is asked."""
    return lambda _body: steps


def refusal(status: int, headers: Mapping[str, str] | None = None, **error: object) -> Script:
    """An error in OpenAI's shape."""
    return exactly(Whole(status, json.dumps({"error": error}).encode(), headers or {}))


def endless(_body: Mapping[str, Any]) -> Iterator[Step]:
    """Words without end."""
    while True:
        yield text("on ")
        yield Pause(PAUSE_SECONDS)


def cut_small(script: Script, size: int = 3) -> Script:
    """The same bytes in pieces so small that every character is cut somewhere."""

    def cut(body: Mapping[str, Any]) -> Iterator[Step]:
        for step in script(body):
            if isinstance(step, bytes):
                for start in range(0, len(step), size):
                    yield step[start : start + size]
                    yield Pause(0)
            else:
                yield step

    return cut


START: Final = (chunk({"role": "assistant", "content": ""}), text("one "), text("two "))

ERROR_THEN_DONE: Final = exactly(*START, event({"error": {"message": "EngineCore died"}}), DONE)
ABORTED: Final = exactly(*START, chunk({}, "abort"), DONE)
NO_REASON: Final = exactly(*START, DONE)
ENDS_SILENTLY: Final = exactly(*START)
DIES: Final = exactly(*START, Pause(PAUSE_SECONDS), Die())
GARBAGE: Final = exactly(*START, b"data: {not json\n\n")

CONTEXT_OVERFLOW: Final = refusal(
    400,
    message="This model's maximum context length is 2048 tokens. However, you requested 9000.",
    type="BadRequestError",
    code=400,
)
BUSY: Final = refusal(429, message="slow down")
RATE_LIMITED: Final = refusal(429, {"retry-after": "7"}, message="come back later")
BROKEN: Final = refusal(500, message="boom at /srv/secret/path")


def _pack(numbers: Iterable[float]) -> str:
    values = tuple(numbers)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": total,
    }
