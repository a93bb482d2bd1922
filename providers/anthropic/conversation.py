"""Translates the messages of a canonical request: turns that alternate, and the system's blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aimo_node.errors import InvalidRequest
from providers.answers import NOT_JSON
from providers.anthropic.content import Block, blocks_of, text_blocks_of
from providers.anthropic.dialect import IS_ERROR, SYSTEM_ROLES, THINKING_BLOCKS
from providers.anthropic.fields import (
    cache_control_of,
    extension_of,
    mapping_at,
    objects_at,
    text_at,
)

_ID_FORBIDDEN: Final = re.compile(r"[^a-zA-Z0-9_-]")


class Conversation:
    """Built message by message; used by one translation.

    Rules: system and developer messages go into `system`, wherever they stand, in their order –
    or, with `system_in_place`, those after the first turn stay where they are unless that is
    between calls and their results. Neighbours of one role become one turn. In a user's turn tool
    results come first, as the API demands. A message in which nothing is left is passed over.

    Attributes:
        system: blocks of text.
        left_out: names of what could not be carried.
    """

    def __init__(self, left_out: set[str], *, system_in_place: bool = False) -> None:
        self.system: list[Block] = []
        self.left_out = left_out
        self._system_in_place = system_in_place
        self._turns: list[_Turn] = []

    def add(self, path: str, message: Mapping[str, Any]) -> None:
        """Take the next message.

        Raises:
            InvalidRequest: naming the field below `path` that cannot be translated.
        """
        if message.get("name"):
            self.left_out.add("messages[].name")
        match message.get("role"):
            case "user":
                self._put("user", rest=self._content(path, message))
            case "assistant":
                self._put("assistant", rest=self._assistant(path, message))
            case "tool":
                self._put("user", results=[self._result(path, message)])
            case str(role) if role in SYSTEM_ROLES:
                self._add_system(path, message)
            case role:
                raise InvalidRequest(
                    f"{path}.role {role!r:.40} is none of system, developer, user, assistant, tool",
                    param=f"{path}.role",
                )

    def turns(self) -> list[dict[str, Any]]:
        """The ``messages`` of the request."""
        return [{"role": turn.role, "content": turn.results + turn.rest} for turn in self._turns]

    def _put(self, role: str, *, results: Sequence[Block] = (), rest: Sequence[Block] = ()) -> None:
        if not results and not rest:
            return
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role, [], []))
        self._turns[-1].results += results
        self._turns[-1].rest += rest

    def _add_system(self, path: str, message: Mapping[str, Any]) -> None:
        blocks = text_blocks_of(f"{path}.content", message.get("content"), self.left_out)
        _mark_last(blocks, cache_control_of(path, message))
        if self._system_in_place and self._turns and not self._awaits_results():
            self._put("system", rest=blocks)
        else:
            self.system += blocks

    def _awaits_results(self) -> bool:
        """Nothing may stand between calls and their results."""
        return any(block["type"] == "tool_use" for block in self._turns[-1].rest)

    def _content(self, path: str, message: Mapping[str, Any]) -> list[Block]:
        blocks = blocks_of(f"{path}.content", message.get("content"), self.left_out)
        return _mark_last(blocks, cache_control_of(path, message))

    def _result(self, path: str, message: Mapping[str, Any]) -> Block:
        called = text_at(f"{path}.tool_call_id", message.get("tool_call_id"))
        block: Block = {"type": "tool_result", "tool_use_id": _call_id(called)}
        content = blocks_of(f"{path}.content", message.get("content"), self.left_out)
        if content:
            block["content"] = content
        if extension_of(path, message).get(IS_ERROR) is True:
            block["is_error"] = True
        return block | cache_control_of(path, message)

    def _assistant(self, path: str, message: Mapping[str, Any]) -> list[Block]:
        if message.get("function_call"):
            where = f"{path}.function_call"
            raise InvalidRequest(f"{where} is not supported: use tool_calls", param=where)
        said = text_blocks_of(f"{path}.content", message.get("content"), self.left_out)
        if isinstance(message.get("refusal"), str):
            said += blocks_of(f"{path}.refusal", message["refusal"], self.left_out)
        called = [
            _tool_use(where, call)
            for where, call in objects_at(f"{path}.tool_calls", message.get("tool_calls"))
        ]
        thoughts = self._thoughts(path, message)
        return _mark_last(_in_order(said, called, thoughts), cache_control_of(path, message))

    def _thoughts(self, path: str, message: Mapping[str, Any]) -> list[_Thought]:
        entries = extension_of(path, message).get(THINKING_BLOCKS)
        if not entries and message.get("reasoning_content"):
            # The API takes back only thinking that it has signed.
            self.left_out.add("messages[].reasoning_content")
        thoughts = [
            _thought(where, entry)
            for where, entry in objects_at(f"{path}.aimo.{THINKING_BLOCKS}", entries)
        ]
        if None in thoughts:
            self.left_out.add(f"messages[].aimo.{THINKING_BLOCKS}")
        found = [thought for thought in thoughts if thought is not None]
        return sorted(found, key=lambda thought: (thought.after_calls, thought.after_text))


@dataclass(slots=True)
class _Turn:
    role: str
    results: list[Block]
    rest: list[Block]


@dataclass(frozen=True, slots=True)
class _Thought:
    """A block of thinking and where it stood."""

    block: Block
    after_text: int
    after_calls: int


def _thought(path: str, entry: Mapping[str, Any]) -> _Thought | None:
    """None for thinking without a signature: the API would refuse it."""
    place = (_count(path, entry, "after_text"), _count(path, entry, "after_calls"))
    match entry:
        case {"type": "thinking", "signature": str(signature)} if signature:
            thinking = entry.get("thinking")
            text = thinking if isinstance(thinking, str) else ""
            return _Thought({"type": "thinking", "thinking": text, "signature": signature}, *place)
        case {"type": "redacted_thinking", "data": str(data)} if data:
            return _Thought({"type": "redacted_thinking", "data": data}, *place)
        case {"type": "thinking" | "redacted_thinking"}:
            return None
    raise InvalidRequest(f"{path}.type must be thinking or redacted_thinking", param=f"{path}.type")


def _count(path: str, entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name, 0)
    if type(value) is not int or value < 0:
        where = f"{path}.{name}"
        raise InvalidRequest(f"{where} must be a whole number from 0", param=where)
    return value


def _in_order(
    said: Sequence[Block], called: Sequence[Block], thoughts: Sequence[_Thought]
) -> list[Block]:
    """The assistant's blocks in the order in which the model wrote them.

    The API refuses thinking that has moved; the canonical form joins all text and puts it before
    the calls, so a text is cut where a thought stood.
    """
    blocks: list[Block] = []
    waiting = list(thoughts)
    position = 0
    for block in said:
        start, text = 0, block["text"]
        while waiting and not waiting[0].after_calls:
            end = waiting[0].after_text - position
            if end >= len(text):
                break
            _append_text(blocks, text[start : max(start, end)])
            start = max(start, end)
            blocks.append(waiting.pop(0).block)
        _append_text(blocks, text[start:], block)
        position += len(text)
    for index, call in enumerate(called):
        while waiting and waiting[0].after_calls <= index:
            blocks.append(waiting.pop(0).block)
        blocks.append(call)
    return blocks + [thought.block for thought in waiting]


def _append_text(blocks: list[Block], text: str, like: Mapping[str, Any] | None = None) -> None:
    if text.strip():
        blocks.append({**(like or {"type": "text"}), "text": text})


def _tool_use(path: str, call: Mapping[str, Any]) -> Block:
    if call.get("type", "function") != "function":
        where = f"{path}.type"
        raise InvalidRequest(f"{where} must be function: there are no others here", param=where)
    function = mapping_at(f"{path}.function", call.get("function"))
    return {
        "type": "tool_use",
        "id": _call_id(text_at(f"{path}.id", call.get("id"))),
        "name": text_at(f"{path}.function.name", function.get("name")),
        "input": _arguments(f"{path}.function.arguments", function.get("arguments")),
        **cache_control_of(path, call),
    }


def _arguments(path: str, text: object) -> dict[str, Any]:
    """The object a call's arguments stand for; nothing at all is an empty one."""
    if text is None:
        return {}
    if not isinstance(text, str):
        raise InvalidRequest(f"{path} must be JSON in a string", param=path)
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except (*NOT_JSON, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", param=path) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be a JSON object", param=path)
    return value


def _call_id(text: str) -> str:
    """An id the API takes: letters, digits, ``_`` and ``-``; others are written by their code."""
    return _ID_FORBIDDEN.sub(lambda found: f"_{ord(found[0]):x}_", text)


def _mark_last(blocks: list[Block], control: Mapping[str, Any]) -> list[Block]:
    """`blocks` with a message's cache breakpoint on the last that can have one."""
    for block in reversed(blocks) if control else ():
        if block["type"] not in {"thinking", "redacted_thinking"}:
            block.update(control)
            break
    return blocks
