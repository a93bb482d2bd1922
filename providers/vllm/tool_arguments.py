"""Checks the arguments of tool calls before the end of an answer is believed.

What a model wrote as arguments is text; `Infinity` has been seen in it, which no JSON reader of a
consumer takes. Such an answer fails, so that another provider may do better. One that was cut off
by its token limit is let through: its reason says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON
from providers.sinks import PassingSink

ARGUMENTS_CHARACTERS_MAX: Final = 1 << 20
CALLS_MAX: Final = 256
"""Of all choices together."""

_decode: Final = msgspec.json.Decoder().decode
_decode_choices: Final = msgspec.json.Decoder(list[dict[str, Any]]).decode
_encode: Final = msgspec.json.Encoder().encode


class CheckedToolCalls(PassingSink):
    """A sink in front of a request's own, for requests that offer tools. Used by one task."""

    def __init__(self, sink: AnswerSink) -> None:
        super().__init__(sink)
        self._calls: dict[tuple[int, int], list[str]] = {}
        self._characters = 0
        self._whole = False

    def json(self, choices: bytes) -> None:
        """Note the arguments in it and pass it on.

        Raises:
            EngineFailed: there are more of them than any model writes.
        """
        decoded = _decode_choices(choices)
        changed = False
        for choice in decoded:
            for call, index in _calls_of(choice):
                changed |= self._note(choice, call, index)
        self._sink.json(_encode(decoded) if changed else choices)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Check all arguments, then pass the end on.

        Raises:
            EngineFailed: they are not a JSON object.
        """
        if reason is not FinishReason.LENGTH:
            for (choice, index), pieces in self._calls.items():
                text = "".join(pieces)
                if text.strip():
                    _check(text)
                elif not self._whole:
                    self._sink.json(_encode([_empty_arguments(choice, index)]))
        self._sink.finish(reason, usage)

    def _note(self, choice: dict[str, Any], call: dict[str, Any], index: int) -> bool:
        """Collect the arguments of a call; True if the choice was mended."""
        function = call.get("function")
        if not isinstance(function, dict):
            return False
        text = function.get("arguments") or ""
        if not isinstance(text, str):
            raise EngineFailed("the engine sent a tool call whose arguments are no text")
        mended = False
        if "message" in choice:
            self._whole = True
            if not text.strip():
                function["arguments"] = "{}"
                mended = True
        number = choice.get("index", 0)
        pieces = self._calls.setdefault((number if isinstance(number, int) else 0, index), [])
        pieces.append(text)
        self._characters += len(text)
        if self._characters > ARGUMENTS_CHARACTERS_MAX or len(self._calls) > CALLS_MAX:
            raise EngineFailed("the engine sent tool calls without end")
        return mended


def _calls_of(choice: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each call in a choice, with its number."""
    holder = choice.get("delta") or choice.get("message")
    calls = holder.get("tool_calls") if isinstance(holder, dict) else None
    for position, call in enumerate(calls if isinstance(calls, list) else []):
        if isinstance(call, dict):
            index = call.get("index", position)
            yield call, index if isinstance(index, int) else position


def _check(text: str) -> None:
    """msgspec reads strict JSON: no NaN, no Infinity, no number beyond a double's range."""
    try:
        if isinstance(_decode(text.encode()), dict):
            return
    except (*NOT_JSON, UnicodeEncodeError):
        pass
    raise EngineFailed("the engine wrote a tool call whose arguments are not a JSON object")


def _empty_arguments(choice: int, index: int) -> dict[str, Any]:
    """What a model that calls a function without arguments should have said."""
    call = {"index": index, "function": {"arguments": "{}"}}
    return {"index": choice, "delta": {"tool_calls": [call]}, "finish_reason": None}
