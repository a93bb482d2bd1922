"""Reads a streamed answer in OpenAI's dialect, sans-I/O: bytes in, calls of an `AnswerSink` out.

An answer counts as whole only if every choice ended with a reason OpenAI knows: vLLM sends an
error event and then ``[DONE]``, or the reason ``abort``, when it dies in mid-stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FINISH_REASONS, FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON, PIECE_CHARACTERS_MAX, split_text

EVENT_BYTES_MAX: Final = 1 << 20
"""One event; a tool call's arguments in one piece are the longest that occur."""

CHOICES_MAX: Final = 128
"""OpenAI's own bound for ``n``."""

TOKENS_COUNTED_MAX: Final = 1 << 40
"""A usage above this is nonsense."""

_LEGACY_REASONS: Final = {"function_call": FinishReason.TOOL_CALLS}
_PLAIN_FIELDS: Final = frozenset({"role", "content"})


class _TextDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A delta that holds text and nothing else; other fields are there, but null."""

    content: str | None = None
    role: str | None = None
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _TextDelta
    index: Literal[0] = 0
    finish_reason: None = None
    logprobs: None = None


class _TextChunk(msgspec.Struct, gc=False):
    """The usual chunk. Decoding a line as this, or failing to, is the fast path."""

    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


_decode_text_chunk = msgspec.json.Decoder(_TextChunk).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class AnswerStream:
    """One answer on its way from an upstream to a sink. Used by one task.

    Attributes:
        done: ``[DONE]`` has come; nothing after it is read.
    """

    def __init__(self, sink: AnswerSink) -> None:
        self.done = False
        self._sink = sink
        self._rest = b""
        self._event = b""
        self._reasons: dict[int, FinishReason | None] = {}
        self._usage: Usage | None = None
        self._chunks = 0

    @property
    def begun(self) -> bool:
        """Something has been written, or there will be nothing more."""
        return self._chunks > 0 or self.done

    def feed(self, data: bytes) -> None:
        """Take bytes as they come; a character or a line may be cut anywhere.

        Raises:
            EngineFailed: an error event, a reason that means failure, or nonsense.
        """
        end = len(data) - 2
        one_line = data.find(b"\n") == end > len(b"data:") and data[end:] == b"\n\n"
        if one_line and data[:5] == b"data:" and not (self._rest or self._event):
            # The usual case, one token: one event on one line and nothing else.
            self._check_length(data)
            self._take_event(data[5:end])
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        self._check_length(self._rest)
        for line in lines:
            if line[:5] == b"data:":
                self._event = self._event + b"\n" + line[5:] if self._event else line[5:]
                self._check_length(self._event)
            elif self._event and line in {b"", b"\r"}:
                event, self._event = self._event, b""
                self._take_event(event)
                if self.done:
                    return
            # Comments and the fields event, id and retry carry nothing we need.

    def end(self) -> tuple[FinishReason, Usage]:
        """The stream is over, properly closed: how the answer ended.

        Raises:
            EngineFailed: it did not end, it broke off.
        """
        if self._event and not self.done:
            # A last event without its blank line; some servers close right after it.
            event, self._event = self._event, b""
            self._take_event(event)
        reason = self._reasons.get(0)
        if reason is None or None in self._reasons.values():
            raise EngineFailed("the engine's answer broke off before its end")
        # Without a report the prompt is unknown; a chunk is a token with every common engine.
        return reason, self._usage or Usage(0, self._chunks)

    def _check_length(self, part: bytes) -> None:
        if len(part) > EVENT_BYTES_MAX:
            raise EngineFailed(f"the engine sent an event of more than {EVENT_BYTES_MAX} bytes")

    def _take_event(self, event: bytes) -> None:
        try:
            chunk = _decode_text_chunk(event)
        except NOT_JSON:
            self._take_other_event(event)
            return
        content = chunk.choices[0].delta.content
        if 0 not in self._reasons:
            self._reasons[0] = None
        if content:
            self._write(content)

    def _take_other_event(self, event: bytes) -> None:
        if event.strip() == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(event)
        except NOT_JSON as error:
            raise EngineFailed("the engine sent something that is not JSON") from error
        if not isinstance(chunk, dict):
            raise EngineFailed("the engine sent a chunk that is no object")
        raise_error_in(chunk)
        self._usage = read_usage(chunk) or self._usage
        choices = chunk.get("choices") or []
        if not isinstance(choices, list):
            raise EngineFailed("the engine sent choices that are no list")
        rich = [choice for choice in choices if self._take_choice(choice)]
        if rich:
            self._chunks += 1
            self._sink.json(_encode([_delta_choice(choice) for choice in rich]))

    def _take_choice(self, choice: object) -> bool:
        """Note how a choice goes on and write it if it is plain; True if it needs JSON."""
        if not isinstance(choice, dict):
            raise EngineFailed("the engine sent a choice that is no object")
        index = choice_index(choice)
        reason = read_reason(choice)
        self._reasons[index] = reason or self._reasons.get(index)
        text, plain = plain_text(choice, "delta")
        if index == 0 and plain:
            if text:
                self._write(text)
            return False
        return bool(text or not plain or reason)

    def _write(self, text: str) -> None:
        self._chunks += 1
        if len(text) <= PIECE_CHARACTERS_MAX:
            self._sink.text(text)
        else:
            for piece in split_text(text):
                self._sink.text(piece)


def raise_error_in(answer: Mapping[str, Any]) -> None:
    """See whether an answer is an error in disguise.

    Raises:
        EngineFailed: it is.
    """
    if answer.get("error"):
        raise EngineFailed("the engine reported an error in the middle of its answer")


def choice_index(choice: Mapping[str, Any]) -> int:
    """Which of several answers this is.

    Raises:
        EngineFailed: no such number is possible.
    """
    index = choice.get("index", 0)
    if type(index) is not int or not 0 <= index < CHOICES_MAX:
        raise EngineFailed("the engine numbered its choices in a way nobody understands")
    return index


def read_reason(choice: Mapping[str, Any]) -> FinishReason | None:
    """Why a choice ended, None while it goes on.

    Raises:
        EngineFailed: for a reason that is none of OpenAI's, such as ``abort``.
    """
    text = choice.get("finish_reason")
    if not text:
        return None
    reason = None
    if isinstance(text, str):
        reason = FINISH_REASONS.get(text) or _LEGACY_REASONS.get(text)
    if reason is None:
        raise EngineFailed(f"the engine broke off its answer (finish reason {text!r:.40})")
    return reason


def plain_text(choice: Mapping[str, Any], field: str) -> tuple[str, bool]:
    """The text of a choice, and whether it is all there is.

    Args:
        field: ``delta`` or ``message``; completions have ``text`` in its place.

    Raises:
        EngineFailed: it has no message.
    """
    holder = choice.get(field)
    if holder is None and isinstance(choice.get("text"), str):
        return choice["text"], not choice.get("logprobs")
    if holder is None and field == "delta":
        return "", True
    if not isinstance(holder, dict):
        raise EngineFailed(f"the engine sent a choice without {field}")
    content = holder.get("content") or ""
    extra = any(value for name, value in holder.items() if name not in _PLAIN_FIELDS)
    plain = isinstance(content, str) and not extra and not choice.get("logprobs")
    return (content if isinstance(content, str) else ""), plain


def read_usage(answer: Mapping[str, Any]) -> Usage | None:
    """The usage an answer reports, None if it reports none or nonsense."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached)
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= TOKENS_COUNTED_MAX else 0


def _delta_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What travels of a choice: OpenAI's fields, none of the vendor's own.

    The finish reason of choice 0 travels apart, so here it is null.
    """
    index = choice_index(choice)
    kept = {name: choice[name] for name in ("delta", "text", "logprobs") if choice.get(name)}
    if "text" not in choice:
        kept.setdefault("delta", {})
    reason = read_reason(choice) if index else None
    return {"index": index, **kept, "finish_reason": reason.text if reason else None}
