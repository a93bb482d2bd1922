"""What the Messages API and the canonical form call the same things: tables, no behaviour.

The canonical form is OpenAI's Chat Completions JSON with an object ``aimo`` where it has no place
for something; the names of those extensions are here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aimo_node.domain.ids import FinishReason

API_VERSION: Final = "2023-06-01"

NO_SAMPLING_SINCE: Final = "2026-10-21"
"""The version of the API that took temperature, top_p and top_k out; dates sort as they are."""

FINISH_OF_STOP: Final[Mapping[str, FinishReason]] = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    # Only tools that run at the API pause a turn, and none are offered to it. Should it happen,
    # the answer is not whole, and sending it back lets the model go on: as with ``length``.
    "pause_turn": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
STOP_OF_FINISH: Final[Mapping[FinishReason, str]] = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}
"""The way back, for an answer that does not say its stop reason in ``aimo.stop_reason``."""

TOOL_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "none": "none", "required": "any"}
"""OpenAI's words and the API's types; one function by name is ``tool``."""

SYSTEM_ROLES: Final = frozenset({"system", "developer"})

IMAGE_TYPES: Final[Mapping[str, str]] = {
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/png": "image/png",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
}
"""What the API takes, by the names clients use."""

PDF_TYPE: Final = "application/pdf"

BUDGET_TOKENS_MIN: Final = 1024
"""The API's own lower bound of a thinking budget."""

ANSWER_TOKENS_MIN: Final = 1024
"""What a thinking budget leaves for the answer itself."""

BUDGET_OF_EFFORT: Final[Mapping[str, int]] = {
    "minimal": 1_024,
    "low": 2_048,
    "medium": 8_192,
    "high": 16_384,
    "xhigh": 24_576,
    "max": 32_768,
}
"""Thinking budgets for models that take one; they count towards max_tokens."""

EFFORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "minimal": ("low",),
    "low": ("low",),
    "medium": ("medium", "low"),
    "high": ("high", "medium"),
    "xhigh": ("xhigh", "high"),
    "max": ("max", "xhigh", "high"),
}
"""Effort levels for models that think adaptively; the first one the model has is taken."""

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "seed": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
}
"""Steers chances only, and the API has nothing like it: left out, with the values that do nothing
and so are not worth a word."""

SHAPES: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
}
"""Shapes the answer, and the API has nothing like it: refused unless it has such a value."""

STEERING: Final = frozenset(
    {"max_tokens", "metadata", "stop_sequences", "stream", "temperature", "top_k", "top_p"}
)
"""Fields of a Messages request that do not change its prompt; token counting takes none."""

# Names below ``aimo``.
CACHE_CONTROL: Final = "cache_control"
"""On a request, message, content part, tool or tool call: a cache breakpoint, word for word."""

THINKING: Final = "thinking"
"""On a request: the API's ``thinking`` object, in place of reasoning_effort."""

THINKING_BLOCKS: Final = "thinking_blocks"
"""On an assistant's message and its deltas: what has to go back unchanged. Each entry has
``type``, ``thinking`` and ``signature`` or ``data``, and where it stood: ``after_text`` characters
and ``after_calls`` tool calls. In deltas ``index`` says which entry grows, and the thinking itself
is in ``reasoning_content``."""

IS_ERROR: Final = "is_error"
"""On a tool's message: the call failed."""

STOP_REASON: Final = "stop_reason"
"""On the last delta: the API's word where OpenAI's vocabulary says less."""

STOP_SEQUENCE: Final = "stop_sequence"
"""On the last delta: which of the stop sequences was met."""
