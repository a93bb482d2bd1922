"""Whole Messages answers: read from one JSON body, or put together from a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON, split_text
from providers.anthropic.dialect import THINKING_BLOCKS
from providers.anthropic.reader import MessageReader
from providers.sinks import CollectingSink

CHARACTERS_MAX: Final = 8 << 20
"""Of one answer; the mesh carries no more than so many bytes of one."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def write_whole(body: bytes, sink: AnswerSink) -> None:
    """Put the answer that one JSON body holds into `sink`, its end included.

    Raises:
        Overloaded, EngineFailed: it is an error, broken off or nonsense.
    """
    try:
        message = _decode(body)
    except NOT_JSON as error:
        raise EngineFailed("the engine sent something that is not JSON") from error
    if not isinstance(message, dict):
        raise EngineFailed("the engine's answer is no object")
    content = message.get("content")
    if message.get("type") != "error" and not isinstance(content, list):
        raise EngineFailed("the engine's answer has no content")
    whole = WholeMessage(sink)
    reader = MessageReader(whole)
    # Read as the stream it would have been, so that both forms mean the same.
    if message.get("type") == "error":
        reader.take("error", message)
    reader.take("message_start", {"message": message})
    for index, block in enumerate(content if isinstance(content, list) else ()):
        reader.take("content_block_start", {"index": index, "content_block": block})
        reader.take("content_block_stop", {"index": index})
    reader.take("message_delta", {"delta": message, "usage": message.get("usage")})
    reader.take("message_stop", {})
    whole.finish(*reader.end())


class WholeMessage(CollectingSink):
    """A sink that collects a streamed answer and gives it on as one.

    Plain text goes on as text, all else as an array of one choice with ``message``.
    """

    def __init__(self, sink: AnswerSink) -> None:
        self._sink = sink
        self._texts: list[str] = []
        self._strings: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._thoughts: dict[int, dict[str, Any]] = {}
        self._extension: dict[str, Any] = {}
        self._left = CHARACTERS_MAX

    def text(self, delta: str) -> None:
        """Collect text."""
        self._take_room(len(delta))
        self._texts.append(delta)

    def json(self, choices: bytes) -> None:
        """Collect a JSON delta of a `MessageReader`."""
        self._take_room(len(choices))
        delta = _decode(choices)[0]["delta"]
        for call in delta.get("tool_calls", ()):
            self._add_call(call)
        for name in ("reasoning_content", "refusal"):
            if name in delta:
                self._strings.setdefault(name, []).append(delta[name])
        if "reasoning_content" in delta and self._thoughts:
            thought = self._thoughts[max(self._thoughts)]
            thought.setdefault("thinking", []).append(delta["reasoning_content"])
        extension = dict(delta.get("aimo", {}))
        for thought in extension.pop(THINKING_BLOCKS, ()):
            self._add_thought(thought)
        self._extension.update(extension)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Give on what was collected, and the end."""
        text = "".join(self._texts)
        message = self._message(text)
        if set(message) == {"role", "content"}:
            for piece in split_text(text):
                self._sink.text(piece)
        else:
            self._sink.json(_encode([{"index": 0, "message": message, "finish_reason": None}]))
        self._sink.finish(reason, usage)

    def _message(self, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        message.update({name: "".join(pieces) for name, pieces in self._strings.items()})
        if self._calls:
            message["tool_calls"] = [_joined_call(self._calls[at]) for at in sorted(self._calls)]
        if self._thoughts:
            thoughts = [_joined(self._thoughts[at]) for at in sorted(self._thoughts)]
            self._extension[THINKING_BLOCKS] = thoughts
        return message | ({"aimo": self._extension} if self._extension else {})

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(piece["index"], {})
        if "id" in piece:
            call.update(id=piece["id"], name=piece["function"]["name"], arguments=[])
        call["arguments"].append(piece["function"]["arguments"])

    def _add_thought(self, piece: Mapping[str, Any]) -> None:
        thought = self._thoughts.setdefault(piece["index"], {})
        for name, value in piece.items():
            if name in {"signature", "data"}:
                thought.setdefault(name, []).append(value)
            elif name != "index":
                thought[name] = value

    def _take_room(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise EngineFailed(f"the engine's answer is longer than {CHARACTERS_MAX} characters")


def _joined(pieces: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: "".join(value) if isinstance(value, list) else value for name, value in pieces.items()
    }


def _joined_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": "".join(call["arguments"])}
    return {"id": call["id"], "type": "function", "function": function}
