"""A whole answer for a consumer that does not stream: parts gathered into one completion."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta
from aimo_node.domain.ids import RequestId
from aimo_node.edge.openai.choices import WholeChoice, decode_wholes, encode_checked
from aimo_node.edge.openai.chunks import completion_id, usage_object
from aimo_node.errors import EngineFailed

_encode: Final = msgspec.json.Encoder().encode


class Completion:
    """Gathers one answer: text of choice 0, or whole messages, or both.

    Args:
        choices_max: choices the consumer asked for; others are refused.
        bytes_max: of text and JSON together.
    """

    def __init__(self, *, choices_max: int, bytes_max: int) -> None:
        self._choices_max = choices_max
        self._bytes_left = bytes_max
        self._texts: list[str] = []
        self._choices: dict[int, WholeChoice] = {}

    def add(self, part: AnswerPart) -> None:
        """Take one part.

        Raises:
            EngineFailed: malformed, a choice nobody asked for or sent twice, or too much.
        """
        if isinstance(part, str):
            self._spend(len(part))
            self._texts.append(part)
        elif isinstance(part, JsonDelta):
            self._spend(len(part.data))
            for choice in decode_wholes(part.data):
                self._add_choice(choice)

    def write(self, request_id: RequestId, model: str, created: int, finish: Finish) -> bytes:
        """The ``chat.completion`` object.

        Raises:
            EngineFailed: a value cannot be written as JSON.
        """
        choices = encode_checked([self._choice_object(0, finish), *self._others(finish)])
        return (
            b'{"id":%b,"object":"chat.completion","created":%d,"model":%b,"choices":%b,"usage":%b}'
            % (
                _encode(completion_id(request_id)),
                created,
                _encode(model),
                choices,
                _encode(usage_object(finish.usage)),
            )
        )

    def _spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise EngineFailed("The answer is too long to be gathered: stream it.")

    def _add_choice(self, choice: WholeChoice) -> None:
        if not 0 <= choice.index < self._choices_max or choice.index in self._choices:
            raise EngineFailed("The provider sent a choice nobody asked for.")
        self._choices[choice.index] = choice

    def _others(self, finish: Finish) -> list[dict[str, Any]]:
        indexes = sorted(index for index in self._choices if index != 0)
        return [self._choice_object(index, finish) for index in indexes]

    def _choice_object(self, index: int, finish: Finish) -> dict[str, Any]:
        choice = self._choices.get(index)
        said = dict(choice.message) if choice is not None else {}
        content = said.pop("content", None)
        said.pop("role", None)
        if index == 0 and (self._texts or choice is None):
            content = "".join(self._texts) + (content if isinstance(content, str) else "")
        reason = choice.finish_reason if choice is not None and index != 0 else finish.reason.text
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None, **said},
            "logprobs": choice.logprobs if choice is not None else None,
            "finish_reason": reason or "stop",
        }
