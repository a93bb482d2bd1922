"""What the Messages API objects to in a request, as its documentation says; the stand-in asks here.

A translation that passes is one that the API takes, as far as a program can know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

FIELDS: Final = frozenset(
    {
        *("model", "max_tokens", "messages", "system", "stream", "stop_sequences", "metadata"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "output_config"),
        *("cache_control", "service_tier"),
    }
)
BREAKPOINTS_MAX: Final = 4
BUDGET_TOKENS_MIN: Final = 1024

_CALL_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_BLOCKS_OF_ROLE: Final = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
    "system": {"text"},
}

_Check = Callable[[Mapping[str, Any]], Iterator[str]]


def objection(body: Mapping[str, Any]) -> str:
    """The first thing the API would say against a request, empty if nothing."""
    return next((said for check in _CHECKS for said in check(body)), "")


def _fields(body: Mapping[str, Any]) -> Iterator[str]:
    for name in body.keys() - FIELDS:
        yield f"{name}: Extra inputs are not permitted"
    for name, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if not isinstance(body.get(name), kind) or not body[name]:
            yield f"{name}: Field required"


def _messages(body: Mapping[str, Any]) -> Iterator[str]:
    for index, message in enumerate(body["messages"]):
        path = f"messages.{index}"
        role, content = message.get("role"), message.get("content")
        if message.keys() - {"role", "content"}:
            yield f"{path}: Extra inputs are not permitted"
        if role not in _BLOCKS_OF_ROLE:
            yield f"{path}.role: unexpected role {role!r}"
        elif not content:
            yield f"{path}: all messages must have non-empty content"
        elif isinstance(content, list):
            yield from _content(path, content, _BLOCKS_OF_ROLE[role])
    system = body.get("system", [])
    if isinstance(system, list):
        yield from _content("system", system, {"text"})


def _content(path: str, content: Sequence[Any], allowed: set[str]) -> Iterator[str]:
    others_seen = False
    for index, block in enumerate(content):
        where = f"{path}.content.{index}"
        kind = block.get("type")
        if kind not in allowed:
            yield f"{where}: unexpected block {kind!r}"
        elif kind == "tool_result" and others_seen:
            yield f"{where}: tool_result blocks must come before other content"
        others_seen = others_seen or kind != "tool_result"
        yield from _block(where, block)


def _block(path: str, block: Mapping[str, Any]) -> Iterator[str]:
    match block:
        case {"type": "text"}:
            if not str(block.get("text", "")).strip():
                yield f"{path}: text content blocks must contain non-whitespace text"
        case {"type": "image", "source": source}:
            yield from _image(path, source)
        case {"type": "tool_use", "id": str(name), "name": str(), "input": dict()}:
            yield from () if _CALL_ID.fullmatch(name) else (f"{path}.id: String should match",)
        case {"type": "tool_result", "tool_use_id": str()}:
            if isinstance(block.get("content"), list):
                yield from _content(path, block["content"], {"text", "image", "document"})
        case {"type": "thinking", "thinking": str(), "signature": str(signature)} if signature:
            pass
        case {"type": "redacted_thinking", "data": str()} | {"type": "document", "source": dict()}:
            pass
        case _:
            yield f"{path}: Field required"


def _image(path: str, source: Mapping[str, Any]) -> Iterator[str]:
    match source:
        case {"type": "base64", "media_type": kind, "data": str(data)}:
            if kind not in _IMAGE_TYPES or not data:
                yield f"{path}.source.media_type: Input should be a supported image"
        case {"type": "url", "url": str(url)} if url.startswith(("http://", "https://")):
            pass
        case _:
            yield f"{path}.source: Input should be base64 or url"


def _pairs(body: Mapping[str, Any]) -> Iterator[str]:
    """Every call has its result in the next message, and every result its call before it."""
    asked: set[str] = set()
    for index, message in enumerate(body["messages"]):
        if message["role"] == "system" and not asked:
            continue
        blocks = message["content"] if isinstance(message["content"], list) else []
        given = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        for name in asked - given:
            yield f"messages.{index}: `tool_use` ids were found without `tool_result`: {name}"
        for name in given - asked:
            yield f"messages.{index}: unexpected `tool_use_id` found in `tool_result`: {name}"
        asked = {block["id"] for block in blocks if block["type"] == "tool_use"}


def _breakpoints(body: Mapping[str, Any]) -> Iterator[str]:
    found = list(_controls(body))
    if len(found) > BREAKPOINTS_MAX:
        yield f"A maximum of 4 blocks with cache_control may be provided. Found {len(found)}."
    for control in found:
        if control.get("type") != "ephemeral" or control.get("ttl", "5m") not in {"5m", "1h"}:
            yield "cache_control: Input should be ephemeral"


def _controls(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("cache_control"), dict):
            yield value["cache_control"]
        for name, inner in value.items():
            if name not in {"input", "input_schema"}:
                yield from _controls(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _controls(inner)


def _thinking(body: Mapping[str, Any]) -> Iterator[str]:
    thinking = body.get("thinking", {"type": "disabled"})
    if thinking["type"] == "enabled":
        budget = thinking.get("budget_tokens", 0)
        if budget < BUDGET_TOKENS_MIN:
            yield "thinking.budget_tokens: Input should be greater than or equal to 1024"
        if budget >= body["max_tokens"]:
            yield "`max_tokens` must be greater than `thinking.budget_tokens`."
    if thinking["type"] in {"enabled", "adaptive"}:
        if body.get("temperature", 1) != 1 or "top_k" in body:
            yield "`temperature` may only be set to 1 when thinking is enabled."
        if body.get("top_p", 1) < 0.95:
            yield "`top_p` must be greater than or equal to 0.95 when thinking is enabled."
        if body.get("tool_choice", {}).get("type") in {"any", "tool"}:
            yield "Thinking may not be enabled when tool_choice forces tool use."


def _sampling(body: Mapping[str, Any]) -> Iterator[str]:
    for name in ("temperature", "top_p"):
        if not 0 <= body.get(name, 0) <= 1:
            yield f"{name}: range: 0..1"
    if "temperature" in body and "top_p" in body:
        yield "`temperature` and `top_p` cannot both be specified for this model."
    if body.get("top_k", 0) < 0:
        yield "top_k: Input should be greater than or equal to 0"
    if not all(stop.strip() for stop in body.get("stop_sequences", ())):
        yield "stop_sequences: each stop sequence must contain non-whitespace"


def _tools(body: Mapping[str, Any]) -> Iterator[str]:
    tools = body.get("tools", [])
    for index, tool in enumerate(tools):
        if not _TOOL_NAME.fullmatch(str(tool.get("name"))):
            yield f"tools.{index}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"
        if tool.get("input_schema", {}).get("type") != "object":
            yield f"tools.{index}.input_schema.type: Field required"
    choice = body.get("tool_choice")
    if choice is not None and not tools:
        yield "tool_choice: may only be specified while providing tools"
    if choice is not None and choice.get("type") == "tool":
        known = {tool.get("name") for tool in tools}
        yield from () if choice.get("name") in known else (f"Tool {choice.get('name')} not found",)
    used = any(
        block["type"] in {"tool_use", "tool_result"}
        for message in body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
    )
    if used and not tools:
        yield "Requests which include `tool_use` or `tool_result` blocks must define tools"


_CHECKS: Final[tuple[_Check, ...]] = (
    _fields,
    _messages,
    _pairs,
    _breakpoints,
    _thinking,
    _sampling,
    _tools,
)
