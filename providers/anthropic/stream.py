"""Reads a streamed Messages answer, sans-I/O: bytes in, calls of an `AnswerSink` out."""

from __future__ import annotations

from typing import Literal

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.ports.engine import AnswerSink
from providers.answers import NOT_JSON
from providers.anthropic.reader import MessageReader
from providers.http.event_source import Event, EventSource


class _Text(msgspec.Struct, gc=False):
    type: Literal["text_delta"]
    text: str


class _TextEvent(msgspec.Struct, gc=False):
    """The usual event. Decoding data as this, or failing to, is the fast path."""

    type: Literal["content_block_delta"]
    index: int
    delta: _Text


_decode_text_event = msgspec.json.Decoder(_TextEvent).decode
_decode = msgspec.json.Decoder().decode


class MessageStream:
    """One answer on its way from the API to a sink. Used by one task."""

    def __init__(self, sink: AnswerSink) -> None:
        self._events = EventSource()
        self._reader = MessageReader(sink)

    @property
    def done(self) -> bool:
        """``message_stop`` has come; nothing after it is read."""
        return self._reader.done

    def feed(self, data: bytes) -> None:
        """Take bytes as they come; a character or a line may be cut anywhere.

        Raises:
            Overloaded: the API says so before the first token.
            EngineFailed: an error event, or nonsense.
        """
        for event in self._events.feed(data):
            if self._reader.done:
                return
            self._take(event)

    def end(self) -> tuple[FinishReason, Usage]:
        """The stream is over, properly closed: how the answer ended.

        Raises:
            EngineFailed: it did not end, it broke off.
        """
        for event in self._events.close() if not self._reader.done else ():
            self._take(event)
        return self._reader.end()

    def _take(self, event: Event) -> None:
        try:
            text = _decode_text_event(event.data)
        except NOT_JSON:
            self._take_other(event)
            return
        if not self._reader.text_of(text.index, text.delta.text):
            self._take_other(event)

    def _take_other(self, event: Event) -> None:
        try:
            value = _decode(event.data)
        except NOT_JSON as error:
            raise EngineFailed("the engine sent something that is not JSON") from error
        if not isinstance(value, dict):
            raise EngineFailed("the engine sent an event that is no object")
        # Both name the type; a proxy may have lost one of them.
        kind = value.get("type") or event.name.decode("utf-8", "replace")
        self._reader.take(kind if isinstance(kind, str) else "", value)
