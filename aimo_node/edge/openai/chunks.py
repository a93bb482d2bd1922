"""Parts of an answer as ``chat.completion.chunk`` objects, from byte templates.

What differs between two tokens is one JSON string; everything around it is made once per answer.
A provider has no way to put bytes of its own on the consumer's wire: text is escaped here, and
JSON deltas are decoded, reduced to the fields OpenAI knows, and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta, Usage
from aimo_node.domain.ids import RequestId
from aimo_node.edge.openai.choices import ChoiceDelta, decode_deltas, encode_checked
from aimo_node.edge.problem import problem_of
from aimo_node.errors import CodedError, EngineFailed

DONE: Final = b"data: [DONE]\n\n"

_encode: Final = msgspec.json.Encoder().encode
_TEXT_ONLY: Final = {str}


class Frame(NamedTuple):
    """What stands around each chunk."""

    opening: bytes
    closing: bytes


EVENT: Final = Frame(b"data: ", b"\n\n")
"""A server-sent event."""


def completion_id(request_id: RequestId) -> str:
    """The id of the completion that answers a request."""
    return f"chatcmpl-{request_id.hex()}"


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class ChunkWriter:
    """Writes one answer's chunks.

    Args:
        created: seconds since the epoch.
        choices_max: choices the consumer asked for; others are refused.
        include_usage: the consumer asked for a last chunk with the usage.
    """

    def __init__(
        self,
        request_id: RequestId,
        model: str,
        created: int,
        *,
        choices_max: int = 1,
        include_usage: bool = False,
        frame: Frame = EVENT,
    ) -> None:
        self._choices_max = choices_max
        self._include_usage = include_usage
        self._spoken: set[int] = set()  # choices whose first delta, with the role, is out
        self._head = b'%b{"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b' % (
            frame.opening,
            _encode(completion_id(request_id)),
            created,
            _encode(model),
        )
        self._tail = (b',"usage":null}' if include_usage else b"}") + frame.closing
        self._closing = frame.closing
        text_head = self._head + b',"choices":[{"index":0,"delta":{'
        self._first_head = text_head + b'"role":"assistant","content":'
        self._text_head = text_head + b'"content":'
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._text_seam = self._text_tail + self._text_head

    def write(self, parts: Sequence[AnswerPart]) -> list[bytes]:
        """One chunk for each part; for a `Finish` one, or two with the usage.

        Raises:
            EngineFailed: a JSON delta is not what it should be.
        """
        return [chunk for part in parts for chunk in self._write_part(part)]

    def write_joined(self, parts: Sequence[AnswerPart]) -> bytes:
        """The same chunks as `write` in one piece; a run of text costs two C calls in all.

        Raises:
            EngineFailed: a JSON delta is not what it should be.
        """
        if 0 in self._spoken and set(map(type, parts)) == _TEXT_ONLY:
            texts = self._text_seam.join(map(_encode, parts))
            return b"%b%b%b" % (self._text_head, texts, self._text_tail)
        return b"".join(self.write(parts))

    def _write_part(self, part: AnswerPart) -> list[bytes]:
        if isinstance(part, str):
            return [self._write_text(part)]
        if isinstance(part, JsonDelta):
            return [self._write_choices(part)]
        return self._write_finish(part)

    def _write_text(self, text: str) -> bytes:
        head = self._text_head
        if 0 not in self._spoken:
            self._spoken.add(0)
            head = self._first_head
        return b"%b%b%b" % (head, _encode(text), self._text_tail)

    def _write_choices(self, part: JsonDelta) -> bytes:
        choices = [self._reduced(choice) for choice in decode_deltas(part.data)]
        return b'%b,"choices":%b%b' % (self._head, encode_checked(choices), self._tail)

    def _reduced(self, choice: ChoiceDelta) -> ChoiceDelta:
        if not 0 <= choice.index < self._choices_max:
            raise EngineFailed("The provider sent a choice nobody asked for.")
        # the role is ours to say, once
        choice.delta.pop("role", None)
        if choice.index not in self._spoken:
            self._spoken.add(choice.index)
            choice.delta = {"role": "assistant", **choice.delta}
        if choice.index == 0:
            choice.finish_reason = None  # that of choice 0 comes with the Finish
        return choice

    def _write_finish(self, finish: Finish) -> list[bytes]:
        chunks = []
        if 0 not in self._spoken:
            chunks.append(self._write_text(""))
        chunks.append(
            b'%b,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]%b'
            % (self._head, finish.reason.text.encode(), self._tail)
        )
        if self._include_usage:
            usage = _encode(usage_object(finish.usage))
            chunks.append(b'%b,"choices":[],"usage":%b}%b' % (self._head, usage, self._closing))
        return chunks


class SseRenderer:
    """An answer as server-sent events, ended by ``[DONE]``."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer

    def render(self, parts: Sequence[AnswerPart]) -> bytes:
        """The events of these parts in one piece, see `event_stream.Renderer`."""
        events = self._writer.write_joined(parts)
        return events + DONE if type(parts[-1]) is Finish else events

    def render_error(self, error: CodedError) -> bytes:
        """An event with ``error``, and no ``[DONE]``: OpenAI's SDK raises it."""
        return problem_of(error).event
