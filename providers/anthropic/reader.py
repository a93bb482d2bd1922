"""Reads the events of one Messages answer and puts them into an `AnswerSink`, canonically.

A machine without I/O: `take` one event after the other, then `end`. An answer is whole only after
``message_stop``; events, blocks and deltas of types not known here are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import split_text
from providers.anthropic.dialect import (
    FINISH_OF_STOP,
    STOP_OF_FINISH,
    STOP_REASON,
    STOP_SEQUENCE,
    THINKING_BLOCKS,
)
from providers.anthropic.refusals import failure_in_stream

BLOCKS_MAX: Final = 4096
"""Of one answer: each is a text, a call or a thought."""

TOKENS_COUNTED_MAX: Final = 1 << 40
"""A usage above this is nonsense."""

_CACHE_COUNTS: Final = ("cache_creation_input_tokens", "cache_read_input_tokens")
_COUNTS: Final = ("input_tokens", "output_tokens", *_CACHE_COUNTS)

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Block:
    """A block between its start and its stop.

    Attributes:
        kind: ``text``, ``tool_use``, ``thinking``, or empty for what is passed over.
        place: which of the calls, or of the thoughts, it is.
        whole: a call's input as its start gave it.
        grown: a piece of its arguments has come.
    """

    kind: str
    place: int = 0
    whole: Any = None
    grown: bool = False


class MessageReader:
    """One answer. Used by one task.

    Attributes:
        done: ``message_stop`` has come.
        wrote: something has been put into the sink.
    """

    def __init__(self, sink: AnswerSink) -> None:
        self.done = False
        self.wrote = False
        self._sink = sink
        self._blocks: dict[int, _Block] = {}
        self._begun = False
        self._stop_reason = ""
        self._counts: dict[str, int] = {}
        self._characters = 0
        self._calls = 0
        self._thoughts = 0
        self._takers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "content_block_start": self._start_block,
            "content_block_delta": self._grow_block,
            "content_block_stop": self._stop_block,
            "message_delta": self._take_message_delta,
            "message_stop": self._stop,
        }

    def take(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take the next event.

        Raises:
            Overloaded: an error event before anything was written says so.
            EngineFailed: any other error event, or events in an impossible order.
        """
        if kind == "error":
            raise failure_in_stream(event.get("error"), started=self.wrote)
        if kind == "message_start":
            self._start(event)
        elif taker := self._takers.get(kind):
            if not self._begun:
                raise EngineFailed("the engine's answer has no beginning")
            taker(event)

    def text_of(self, index: int, text: str) -> bool:
        """The short way for text of a block that is a text; False if it is not."""
        block = self._blocks.get(index)
        if block is None or block.kind != "text":
            return False
        self._write_text(text)
        return True

    def end(self) -> tuple[FinishReason, Usage]:
        """How the answer ended.

        Raises:
            EngineFailed: it did not end, it broke off.
        """
        if not self.done or not self._stop_reason:
            raise EngineFailed("the engine's answer broke off before its end")
        # A reason that is new to us is still the API's word that the answer is complete.
        return FINISH_OF_STOP.get(self._stop_reason, FinishReason.STOP), self._usage()

    def _usage(self) -> Usage:
        count = self._counts.get
        cached = count("cache_read_input_tokens", 0)
        prompt = count("input_tokens", 0) + cached + count("cache_creation_input_tokens", 0)
        return Usage(prompt, count("output_tokens", 0), cached)

    def _start(self, event: Mapping[str, Any]) -> None:
        if self._begun:
            raise EngineFailed("the engine began its answer twice")
        self._begun = True
        self._count(_mapping(event.get("message")).get("usage"))

    def _stop(self, _event: Mapping[str, Any]) -> None:
        for block in self._blocks.values():
            self._complete(block)  # some servers do not close every block
        self.done = True

    def _count(self, usage: object) -> None:
        """Counts are totals, so later ones replace earlier ones; some are left out at times."""
        for name in _COUNTS:
            value = _mapping(usage).get(name)
            if type(value) is int and 0 <= value <= TOKENS_COUNTED_MAX:
                self._counts[name] = value

    def _take_message_delta(self, event: Mapping[str, Any]) -> None:
        self._count(event.get("usage"))
        delta = _mapping(event.get("delta"))
        reason = delta.get("stop_reason")
        if not isinstance(reason, str) or not reason:
            return
        self._stop_reason = reason
        explanation = _mapping(delta.get("stop_details")).get("explanation")
        if reason == "refusal" and isinstance(explanation, str):
            for piece in split_text(explanation):
                self._write({"refusal": piece})
        if STOP_OF_FINISH.get(FINISH_OF_STOP.get(reason, FinishReason.STOP)) != reason:
            said = {STOP_REASON: reason}
            if isinstance(delta.get("stop_sequence"), str):
                said[STOP_SEQUENCE] = delta["stop_sequence"]
            self._write({"aimo": said})

    def _start_block(self, event: Mapping[str, Any]) -> None:
        index, content = event.get("index"), _mapping(event.get("content_block"))
        if type(index) is not int or index in self._blocks or len(self._blocks) >= BLOCKS_MAX:
            raise EngineFailed("the engine numbered its blocks in a way nobody understands")
        match content.get("type"):
            case "text":
                self._blocks[index] = _Block("text")
                self._write_text(_text(content, "text"))
            case "tool_use":
                self._blocks[index] = self._start_call(content)
            case "thinking":
                self._blocks[index] = block = self._start_thought("thinking")
                self._write_thinking(_text(content, "thinking"))
                self._write_secret(block, "thinking", "signature", _text(content, "signature"))
            case "redacted_thinking":
                # It comes whole, in its start.
                block = self._start_thought("redacted_thinking")
                self._write_secret(block, "redacted_thinking", "data", _text(content, "data"))
                self._blocks[index] = _Block("")
            case _:
                self._blocks[index] = _Block("")

    def _start_call(self, content: Mapping[str, Any]) -> _Block:
        name, call_id = content.get("name"), content.get("id")
        if not (isinstance(name, str) and name and isinstance(call_id, str) and call_id):
            raise EngineFailed("the engine called a tool without a name or an id")
        block = _Block("tool_use", self._calls, content.get("input"))
        self._calls += 1
        function = {"name": name, "arguments": ""}
        self._write_call(block, {"id": call_id, "type": "function", "function": function})
        return block

    def _start_thought(self, kind: str) -> _Block:
        block = _Block("thinking", self._thoughts)
        self._thoughts += 1
        place = {"after_text": self._characters, "after_calls": self._calls}
        stood = {name: count for name, count in place.items() if count}
        self._write_thought(block, {"type": kind, **stood})
        return block

    def _grow_block(self, event: Mapping[str, Any]) -> None:
        index, delta = event.get("index"), _mapping(event.get("delta"))
        block = self._blocks.get(index) if type(index) is int else None
        if block is None:
            raise EngineFailed("the engine goes on with a block that it has not begun")
        match block.kind, delta.get("type"):
            case "text", "text_delta":
                self._write_text(_text(delta, "text"))
            case "tool_use", "input_json_delta":
                self._write_arguments(block, _text(delta, "partial_json"))
            case "thinking", "thinking_delta":
                self._write_thinking(_text(delta, "thinking"))
            case "thinking", "signature_delta":
                self._write_secret(block, "thinking", "signature", _text(delta, "signature"))

    def _stop_block(self, event: Mapping[str, Any]) -> None:
        index = event.get("index")
        block = self._blocks.get(index) if type(index) is int else None
        if block is not None:
            self._complete(block)

    def _complete(self, block: _Block) -> None:
        if block.kind == "tool_use" and not block.grown:
            # Clients parse the arguments; nothing at all would not be JSON.
            whole = block.whole if isinstance(block.whole, dict) else {}
            self._write_arguments(block, _encode(whole).decode())

    def _write_text(self, text: str) -> None:
        if not text:
            return
        self.wrote = True
        self._characters += len(text)
        for piece in split_text(text):
            self._sink.text(piece)

    def _write_thinking(self, text: str) -> None:
        for piece in split_text(text):
            self._write({"reasoning_content": piece})

    def _write_arguments(self, block: _Block, text: str) -> None:
        for piece in split_text(text):
            block.grown = True
            self._write_call(block, {"function": {"arguments": piece}})

    def _write_call(self, block: _Block, piece: Mapping[str, Any]) -> None:
        self._write({"tool_calls": [{"index": block.place, **piece}]})

    def _write_secret(self, block: _Block, kind: str, name: str, text: str) -> None:
        for piece in split_text(text):
            self._write_thought(block, {"type": kind, name: piece})

    def _write_thought(self, block: _Block, piece: Mapping[str, Any]) -> None:
        self._write({"aimo": {THINKING_BLOCKS: [{"index": block.place, **piece}]}})

    def _write(self, delta: Mapping[str, Any]) -> None:
        self.wrote = True
        self._sink.json(_encode([{"index": 0, "delta": delta, "finish_reason": None}]))


def _mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is an object; an upstream may send anything."""
    return value if isinstance(value, dict) else {}


def _text(holder: Mapping[str, Any], name: str) -> str:
    """A string field; empty where it is missing or null.

    Raises:
        EngineFailed: it is of another type.
    """
    value = holder.get(name)
    if value is not None and not isinstance(value, str):
        raise EngineFailed(f"the engine sent {name} that is no text")
    return value or ""
