"""A stand-in for Anthropic's Messages API on loopback: its routes, its errors, its events.

It asks for key and version, objects to what the API objects to, and streams the documented sequence
of events. Scripts bring the faults; plumbing and steps are those of `aimo_node.testing.upstream`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import h11
import trio

from aimo_node.testing.anthropic_rules import objection
from aimo_node.testing.upstream import (
    Die,
    Pause,
    Received,
    Script,
    StandInUpstream,
    Step,
    Whole,
)

KEY: Final = "sk-ant-stand-in"
MODEL: Final = "claude-stand-in"
WORDS: Final = ("Naïve ", "answers ", "cost ", "5 € ", "and ", "a 🙂 ", "too.")
PAUSE_SECONDS: Final = 0.005

NO_SAMPLING_SINCE: Final = "2026-10-21"
"""The API version that took sampling parameters out."""

LIMITS: Final[Mapping[str, str]] = {
    "anthropic-ratelimit-requests-limit": "1000",
    "anthropic-ratelimit-requests-remaining": "999",
    "anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z",
    "anthropic-ratelimit-input-tokens-limit": "80000",
    "anthropic-ratelimit-input-tokens-remaining": "80000",
    "anthropic-ratelimit-input-tokens-reset": "2020-01-01T00:00:00Z",
}
"""Limits that are full again, as the API says them with every answer."""

_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_BLOCK_STARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "text": {"text": ""},
    "tool_use": {"input": {}},
    "thinking": {"thinking": "", "signature": ""},
}
"""What of a block its start leaves empty, for deltas to fill."""

_WORD: Final = re.compile(r"\S+\s*|\s+")


def model_entry(name: str = MODEL, **more: object) -> dict[str, Any]:
    """An entry of the model list, of a model that can do everything but think adaptively."""
    yes, no = {"supported": True}, {"supported": False}
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").title(),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "capabilities": {
            "image_input": yes,
            "pdf_input": yes,
            "structured_outputs": yes,
            "effort": {"supported": False, "low": no, "medium": no, "high": no, "max": no},
            "thinking": {
                "supported": True,
                "types": {"adaptive": no, "enabled": yes, "disabled": yes, "between_tools": no},
            },
        },
        **more,
    }


def adaptive_entry(name: str) -> dict[str, Any]:
    """An entry of a model that decides by itself how much to think, and takes no budget."""
    entry = model_entry(name)
    yes, no = {"supported": True}, {"supported": False}
    levels = dict.fromkeys(("supported", "low", "medium", "high", "xhigh", "max"), yes)
    entry["capabilities"]["effort"] = {**levels, "supported": True}
    entry["capabilities"]["thinking"]["types"] |= {"adaptive": yes, "enabled": no}
    return entry


class StandInMessages(StandInUpstream):
    """Serves until its nursery is cancelled; made by `stand_in_messages`.

    Attributes:
        entries: of the model list; None answers 404 as an API without one.
        page_entries: how many of them a page holds.
        limits: headers of every answer.
        probes: questions for the model list so far.
        accepted: connections so far.
    """

    def __init__(self, endpoint: str, usual: Script) -> None:
        super().__init__(endpoint, usual)
        self.entries: list[dict[str, Any]] | None = [model_entry()]
        self.page_entries = 1000
        self.limits: Mapping[str, str] = LIMITS
        self.listing: Script | None = None
        self.probes = 0
        self.accepted = 0

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        """Answer requests until the client goes."""
        self.accepted += 1
        await super().serve_connection(stream)

    def _script_for(self, received: Received) -> Script:
        path, _, query = received.path.partition("?")
        refused = self._refused(received.headers)
        if refused is not None:
            return refused
        if path == "/v1/models":
            self.probes += 1
            return self.listing or self._page(query)
        if path not in {"/v1/messages", "/v1/messages/count_tokens"}:
            return error("not_found_error", "Not Found")
        self.received.append(received)
        return self._answer(received, counting=path.endswith("count_tokens"))

    def _answer(self, received: Received, *, counting: bool) -> Script:
        body = {"max_tokens": 1 << 20, **received.body} if counting else received.body
        if received.headers["anthropic-version"] >= NO_SAMPLING_SINCE:
            for name in body.keys() & {"temperature", "top_p", "top_k"}:
                return error("invalid_request_error", f"{name}: Extra inputs are not permitted")
        if said := objection(body):
            return error("invalid_request_error", said)
        if self.entries and body["model"] not in [entry["id"] for entry in self.entries]:
            return error("not_found_error", f"model: {body['model']}")
        if counting:
            return exactly(Whole(200, _json({"input_tokens": prompt_tokens(body)})))
        return self.scripts.popleft() if self.scripts else self.usual

    def _refused(self, headers: Mapping[str, str]) -> Script | None:
        if "anthropic-version" not in headers:
            return error("invalid_request_error", "anthropic-version: header is required")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        key = headers.get("x-api-key") or bearer
        if key != KEY:
            return error("authentication_error", f"invalid x-api-key {key}")
        return None

    def _page(self, query: str) -> Script:
        if self.entries is None:
            return error("not_found_error", "Not Found")
        after = dict(part.partition("=")[::2] for part in query.split("&")).get("after_id")
        names = [entry["id"] for entry in self.entries]
        start = names.index(after) + 1 if after else 0
        page = self.entries[start : start + self.page_entries]
        last = page[-1]["id"] if page else None
        more = bool(page) and last != names[-1]
        first = page[0]["id"] if page else None
        listed = {"data": page, "has_more": more, "first_id": first, "last_id": last}
        return exactly(Whole(200, _json(listed)))

    async def _play(
        self, steps: Iterable[Step], stream: trio.abc.Stream, parser: h11.Connection
    ) -> bool:
        self.generating += 1
        try:
            for step in steps:
                match step:
                    case bytes():
                        head = self._head(parser, 200, {"content-type": "text/event-stream"})
                        await stream.send_all(head + (parser.send(h11.Data(data=step)) or b""))
                    case Whole():
                        await stream.send_all(self._whole(parser, step))
                        return True
                    case Pause():
                        await trio.sleep(step.seconds)
                    case Die():
                        return False
            await stream.send_all(parser.send(h11.EndOfMessage()) or b"")
        except trio.BrokenResourceError:
            return False
        finally:
            self.generating -= 1
        return True

    def _head(self, parser: h11.Connection, status: int, more: Mapping[str, str]) -> bytes:
        if parser.our_state is not h11.SEND_RESPONSE:
            return b""
        headers = {"request-id": "req_011StandIn", **self.limits, **more}
        if "content-length" not in headers:
            headers["transfer-encoding"] = "chunked"
        head = h11.Response(status_code=status, headers=list(headers.items()))
        return parser.send(head) or b""

    def _whole(self, parser: h11.Connection, step: Whole) -> bytes:
        sized = {"content-type": "application/json", "content-length": str(len(step.body))}
        head = self._head(parser, step.status, sized | dict(step.headers))
        body = parser.send(h11.Data(data=step.body)) or b""
        return head + body + (parser.send(h11.EndOfMessage()) or b"")


@contextlib.asynccontextmanager
async def stand_in_messages(usual: Script | None = None) -> AsyncIterator[StandInMessages]:
    """A running stand-in on a free loopback port.

    Args:
        usual: how it answers where no other script waits; None says `WORDS`.
    """
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    upstream = StandInMessages(f"http://127.0.0.1:{port}", usual or answer())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upstream.serve_connection, [listener])
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()


def answer(words: Sequence[str] = WORDS) -> Script:
    """`words`, at most ``max_tokens`` of them and none from a stop sequence on."""

    def script(body: Mapping[str, Any]) -> Iterator[Step]:
        said, reason, met = list(words), "end_turn", None
        for place, word in enumerate(said):
            met = next((stop for stop in body.get("stop_sequences", ()) if stop in word), None)
            if met is not None:
                said, reason = said[:place], "stop_sequence"
                break
        if len(said) > body["max_tokens"]:
            said, reason, met = said[: body["max_tokens"]], "max_tokens", None
        content = [{"type": "text", "text": "".join(said)}] if said else []
        usage = {"input_tokens": prompt_tokens(body), "output_tokens": len(said)}
        yield from giving(message(content, reason, usage, stop_sequence=met))(body)

    return script


def message(
    content: Sequence[Mapping[str, Any]],
    stop_reason: str,
    usage: Mapping[str, Any] | None = None,
    **more: object,
) -> dict[str, Any]:
    """A Message object as the API gives it."""
    counted = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 34,
        **(usage or {}),
    }
    return {
        "id": "msg_01StandIn",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": counted,
        **more,
    }


def giving(whole: Mapping[str, Any]) -> Script:
    """A Message, streamed or whole as the request asks."""

    def script(body: Mapping[str, Any]) -> Iterator[Step]:
        if body.get("stream"):
            yield from events_of(whole)
        else:
            yield Whole(200, _json(whole))

    return script


def events_of(whole: Mapping[str, Any]) -> Iterator[bytes]:
    """The events by which the API streams a Message."""
    start_usage = {**whole["usage"], "output_tokens": 1}
    empty: dict[str, Any] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": start_usage,
    }
    yield event("message_start", message={**whole, **empty})
    yield event("ping")
    for index, block in enumerate(whole["content"]):
        unfilled = _BLOCK_STARTS.get(block["type"], {})
        yield event("content_block_start", index=index, content_block={**block, **unfilled})
        for delta in _deltas(block):
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ending = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    if "stop_details" in whole:
        ending["stop_details"] = whole["stop_details"]
    yield event("message_delta", delta=ending, usage=whole["usage"])
    yield event("message_stop")


def event(name: str, **fields: object) -> bytes:
    """One event: its name and its data, which repeats the name as its type."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _json({"type": name, **fields}))


def error(kind: str, said: str, headers: Mapping[str, str] | None = None) -> Script:
    """An error in the API's shape, with the status that belongs to it."""
    body = {"type": "error", "error": {"type": kind, "message": said}, "request_id": "req_1"}
    return exactly(Whole(_STATUS_OF_TYPE[kind], _json(body), headers or {}))


def error_event(kind: str, said: str = "Overloaded") -> bytes:
    """An error in the middle of a stream."""
    return event("error", error={"type": kind, "message": said})


def exactly(*steps: Step) -> Script:
    """The same steps whatever is asked."""
    return lambda _body: steps


def endless(body: Mapping[str, Any]) -> Iterator[Step]:
    """Words without end; whole answers never come."""
    if not body.get("stream"):
        yield Pause(3600)
    yield from START
    while True:
        yield delta_of("on ")
        yield Pause(PAUSE_SECONDS)


def delta_of(text: str, index: int = 0) -> bytes:
    """A piece of text."""
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """A count that depends on the prompt alone: its words."""
    prompt = [body.get("system"), body["messages"], body.get("tools")]
    return len(json.dumps(prompt).split())


def _deltas(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "text":
            for piece in _WORD.findall(block["text"]):
                yield {"type": "text_delta", "text": piece}
        case "tool_use":
            # The API sends an empty piece first, and nothing else for a call without arguments.
            yield {"type": "input_json_delta", "partial_json": ""}
            text = json.dumps(block["input"]) if block["input"] else ""
            for start in range(0, len(text), 7):
                yield {"type": "input_json_delta", "partial_json": text[start : start + 7]}
        case "thinking":
            for piece in _WORD.findall(block["thinking"]):
                yield {"type": "thinking_delta", "thinking": piece}
            yield {"type": "signature_delta", "signature": block["signature"]}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


_BEGINNING: Final = event("message_start", message=message([], "", {"output_tokens": 1}))
START: Final = (
    _BEGINNING,
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    delta_of("one "),
    delta_of("two "),
)
"""How an answer begins that then comes to grief."""

OVERLOADED_LATE: Final = exactly(*START, error_event("overloaded_error"))
OVERLOADED_EARLY: Final = exactly(_BEGINNING, error_event("overloaded_error"))
ENDS_SILENTLY: Final = exactly(*START)
NO_MESSAGE_STOP: Final = exactly(
    *START,
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
)
DIES: Final = exactly(*START, Pause(PAUSE_SECONDS), Die())
GARBAGE: Final = exactly(*START, b"event: content_block_delta\ndata: {not json\n\n")
CONTEXT_OVERFLOW: Final = error(
    "invalid_request_error", "prompt is too long: 214315 tokens > 200000 maximum"
)
OVERLOADED: Final = error("overloaded_error", "Overloaded", {"retry-after": "3"})
RATE_LIMITED: Final = error(
    "rate_limit_error",
    "This request would exceed your organization's rate limit",
    {
        "retry-after": "7",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z",
    },
)
BROKEN: Final = error("api_error", "Internal server error at /srv/secret/path")
