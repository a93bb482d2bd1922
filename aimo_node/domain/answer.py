"""What an engine produces: deltas in order, then exactly one `Finish`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from aimo_node.domain.ids import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; `cached_tokens` is the part of the prompt the engine had cached."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class JsonDelta:
    """A piece of an answer that is more than plain text.

    Attributes:
        data: UTF-8 JSON. For chat and completions the array OpenAI calls ``choices`` (with
            ``delta`` when streaming, ``message`` otherwise); for embeddings and images ``data``.
            Id, model, usage and the finish reason of choice 0 are not in it.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a complete answer."""

    reason: FinishReason
    usage: Usage


AnswerPart: TypeAlias = str | JsonDelta | Finish
"""A text delta, a JSON delta or the end. Text travels as bare `str`: the hot path."""
