"""Decides how a Messages request thinks, how long its answer may be, and how it is sampled.

The three hang together: a thinking budget counts towards max_tokens, and thinking forbids most
sampling parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aimo_node.errors import InvalidRequest
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.dialect import (
    ANSWER_TOKENS_MIN,
    BUDGET_OF_EFFORT,
    BUDGET_TOKENS_MIN,
    EFFORTS,
    THINKING,
)
from providers.anthropic.fields import extension_of, mapping_at

TOKENS_DEFAULT: Final = 4_096
"""``max_tokens`` where neither request nor owner nor API says one; every model can do as much."""

TOKENS_DEFAULT_MAX: Final = 32_768
"""Where the API says the model's bound: no more than this, so that a long prompt still fits the
models that count prompt and ``max_tokens`` together."""

_FORCED: Final = frozenset({"any", "tool"})
_TYPES: Final = frozenset({"enabled", "adaptive", "disabled", "between_tools"})
_TYPES_OFF: Final = frozenset({"disabled", "between_tools"})
_TOP_P_MIN_WITH_THINKING: Final = 0.95


def answer_tokens(body: Mapping[str, Any], facts: ModelFacts, tokens_default: int) -> int:
    """``max_tokens``: what is asked for, at most the model's own bound, else a default.

    Args:
        tokens_default: the owner's; 0 for none.
    """
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or tokens_default
    bound = facts.output_tokens_max
    if not asked:
        return min(bound, TOKENS_DEFAULT_MAX) if bound else TOKENS_DEFAULT
    return min(asked, bound) if bound else int(asked)


def thinking_fields(
    body: Mapping[str, Any], facts: ModelFacts, fields: Mapping[str, Any], left_out: set[str]
) -> dict[str, Any]:
    """The fields ``thinking`` and ``effort``, as far as the request says something about them.

    Args:
        fields: of the Messages request so far: ``max_tokens`` and ``tool_choice`` are looked at.

    Raises:
        InvalidRequest: ``aimo.thinking`` is malformed, or the effort is none there is.
    """
    own = extension_of("", body).get(THINKING)
    if own is not None:
        return {"thinking": _as_given(mapping_at(f"aimo.{THINKING}", own), fields["max_tokens"])}
    effort = body.get("reasoning_effort")
    if effort is None:
        return {}
    if effort != "none" and effort not in BUDGET_OF_EFFORT:
        raise InvalidRequest(
            f"reasoning_effort must be none or one of {', '.join(BUDGET_OF_EFFORT)}",
            param="reasoning_effort",
        )
    found: dict[str, Any] | None
    if effort == "none":
        found = None if facts.thinking_off is False else {"thinking": {"type": "disabled"}}
    elif fields.get("tool_choice", {}).get("type") in _FORCED:
        found = None  # the API refuses to think before a call that is forced
    elif facts.adaptive:
        found = {"thinking": {"type": "adaptive"}, **_effort(effort, facts)}
    else:
        found = None if facts.budgeted is False else _budget(effort, fields["max_tokens"])
    if found is None:
        left_out.add("reasoning_effort")
    return found or {}


def sampling_fields(
    body: Mapping[str, Any], *, allowed: bool, thinks: bool, left_out: set[str]
) -> dict[str, Any]:
    """``temperature``, ``top_p`` and ``top_k``, as far as the model takes them together.

    Args:
        allowed: the model takes any of them.
        thinks: thinking is on, which forbids temperature and top_k and bounds top_p.
    """
    wanted = _effective(body)
    if wanted.get("temperature", 0) > 1:
        wanted["temperature"] = 1
        left_out.add("temperature above 1")
    kept = wanted if allowed else {}
    if thinks:
        kept = {name: value for name, value in kept.items() if _fits_thinking(name, value)}
    if "temperature" in kept and "top_p" in kept:
        # Models since Claude Opus 4.1 take one of the two.
        kept = {name: value for name, value in kept.items() if name != "top_p"}
    left_out.update(wanted.keys() - kept.keys())
    return kept


def _effective(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without the values that do nothing; a temperature of 1 is the API's default."""
    wanted = {name: body.get(name) for name in ("temperature", "top_p", "top_k")}
    idle: dict[str, tuple[object, ...]] = {"temperature": (None, 1), "top_p": (None, 1)}
    idle["top_k"] = (None, 0, -1)
    return {name: value for name, value in wanted.items() if value not in idle[name]}


def _fits_thinking(name: str, value: float) -> bool:
    return name == "top_p" and value >= _TOP_P_MIN_WITH_THINKING


def _as_given(own: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """The consumer's own ``thinking`` object, without fields the API does not have."""
    where = f"aimo.{THINKING}"
    kept = {name: own[name] for name in ("type", "budget_tokens", "display") if name in own}
    if own.get("type") not in _TYPES:
        raise InvalidRequest(
            f"{where}.type must be one of {', '.join(sorted(_TYPES))}", param=f"{where}.type"
        )
    if own["type"] == "enabled":
        budget = own.get("budget_tokens")
        if type(budget) is not int or not BUDGET_TOKENS_MIN <= budget < max_tokens:
            raise InvalidRequest(
                f"{where}.budget_tokens must be from {BUDGET_TOKENS_MIN} to less than max_tokens,"
                f" which is {max_tokens}",
                param=f"{where}.budget_tokens",
            )
    return kept


def thinks(fields: Mapping[str, Any]) -> bool:
    """Whether a Messages request with these fields turns thinking on."""
    return fields.get("thinking", {}).get("type", "disabled") not in _TYPES_OFF


def _effort(effort: str, facts: ModelFacts) -> dict[str, str]:
    known = facts.efforts
    levels = [level for level in EFFORTS[effort] if known is None or level in known]
    return {"effort": levels[0]} if levels else {}


def _budget(effort: str, max_tokens: int) -> dict[str, Any] | None:
    """None where the answer would have too little room left."""
    budget = min(BUDGET_OF_EFFORT[effort], max_tokens - ANSWER_TOKENS_MIN)
    if budget < BUDGET_TOKENS_MIN:
        return None
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}
