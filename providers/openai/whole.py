"""Whole answers in OpenAI's dialect: read from one JSON body, or put together from a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON, split_text
from providers.openai.stream import (
    choice_index,
    plain_text,
    raise_error_in,
    read_reason,
    read_usage,
)
from providers.sinks import CollectingSink

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def write_whole(body: bytes, sink: AnswerSink) -> None:
    """Put the answer that one JSON body holds into `sink`, its end included.

    Raises:
        EngineFailed: it is an error, broken off or nonsense.
    """
    try:
        answer = _decode(body)
    except NOT_JSON as error:
        raise EngineFailed("the engine sent something that is not JSON") from error
    if not isinstance(answer, dict):
        raise EngineFailed("the engine's answer is no object")
    raise_error_in(answer)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineFailed("the engine's answer has no choices")
    reasons = [_ended(choice) for choice in choices]
    text, plain = plain_text(choices[0], "message")
    if plain and len(choices) == 1:
        for piece in split_text(text):
            sink.text(piece)
    else:
        sink.json(_encode([_whole_choice(choice) for choice in choices]))
    sink.finish(reasons[0], read_usage(answer) or Usage())


def _ended(choice: object) -> FinishReason:
    reason = read_reason(choice) if isinstance(choice, dict) else None
    if reason is None:
        raise EngineFailed("the engine's answer broke off before its end")
    return reason


def _whole_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: choice[name] for name in ("message", "text", "logprobs") if choice.get(name)}
    index = choice_index(choice)
    return {"index": index, **kept, "finish_reason": _ended(choice).text if index else None}


class WholeAnswer(CollectingSink):
    """A sink that collects a streamed answer and gives it on as one, for engines that only stream.

    Plain text goes on as text, all else as one array of choices with ``message``.
    """

    def __init__(self, sink: AnswerSink) -> None:
        self._sink = sink
        self._texts: list[str] = []
        self._choices: dict[int, _Collected] = {}

    def text(self, delta: str) -> None:
        """Collect text of choice 0."""
        self._texts.append(delta)

    def json(self, choices: bytes) -> None:
        """Collect a JSON delta."""
        if self._texts:
            self._choice(0).add({"content": "".join(self._texts)})
            self._texts.clear()
        for choice in _decode(choices):
            self._choice(choice["index"]).take(choice)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Give on what was collected, and the end."""
        text = "".join(self._texts)
        if self._choices:
            self._choice(0).add({"content": text} if text else {})
            wholes = [self._choices[index].whole(index) for index in sorted(self._choices)]
            self._sink.json(_encode(wholes))
        else:
            for piece in split_text(text):
                self._sink.text(piece)
        self._sink.finish(reason, usage)

    def _choice(self, index: int) -> _Collected:
        return self._choices.setdefault(index, _Collected())


class _Collected:
    """One choice as far as it has come."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._reason: str | None = None

    def take(self, choice: Mapping[str, Any]) -> None:
        """Add one choice of a JSON delta."""
        self.add(_mapping(choice.get("delta")))
        for name, entries in _mapping(choice.get("logprobs")).items():
            if isinstance(entries, list):
                self._logprobs.setdefault(name, []).extend(entries)
        self._reason = choice.get("finish_reason") or self._reason

    def add(self, delta: Mapping[str, Any]) -> None:
        """Strings grow, tool calls grow by their index, anything else is replaced."""
        for name, value in delta.items():
            if name == "tool_calls" and isinstance(value, list):
                for call in value:
                    self._add_call(_mapping(call))
            elif name != "role" and value is not None:
                self._message[name] = _joined(self._message.get(name), value)

    def whole(self, index: int) -> dict[str, Any]:
        """The choice as an answer that is not streamed has it."""
        calls = [self._calls[key] for key in sorted(self._calls)]
        message = self._message | ({"tool_calls": calls} if calls else {})
        logprobs = {"logprobs": self._logprobs} if self._logprobs else {}
        return {"index": index, "message": message, **logprobs, "finish_reason": self._reason}

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        index = piece.get("index", 0)
        call = self._calls.setdefault(
            index if isinstance(index, int) else 0, {"id": "", "type": "function"}
        )
        call["id"] = piece.get("id") or call["id"]
        function = call.setdefault("function", {"name": "", "arguments": ""})
        for name, value in _mapping(piece.get("function")).items():
            function[name] = _joined(function.get(name), value)


def _mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is an object; an upstream may send anything."""
    return value if isinstance(value, dict) else {}


def _joined(old: object, new: object) -> object:
    return old + new if isinstance(old, str) and isinstance(new, str) else new
