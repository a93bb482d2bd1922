"""What the API says about its models, read from ``GET /v1/models``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aimo_node.errors import EngineStartFailed
from providers.answers import NOT_JSON

PAGE_ENTRIES_MAX: Final = 1000
"""The API's own bound of one page."""

_EFFORT_LEVELS: Final = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model; what is None or 0 the API does not say.

    Attributes:
        context_tokens: prompt, and on some models prompt and answer together.
        output_tokens_max: the most that ``max_tokens`` may be.
        adaptive: it decides by itself how much to think.
        budgeted: it takes a thinking budget in tokens.
        thinking_off: its thinking can be turned off.
        efforts: the effort levels it knows.
    """

    name: str
    display_name: str = ""
    context_tokens: int = 0
    output_tokens_max: int = 0
    images: bool | None = None
    schemas: bool | None = None
    adaptive: bool | None = None
    budgeted: bool | None = None
    thinking_off: bool | None = None
    efforts: frozenset[str] | None = None

    @property
    def takes_sampling(self) -> bool:
        """Whether temperature, top_p and top_k may be sent.

        The API does not say so, but the models that lost the thinking budget, Claude Opus 4.7 and
        later, lost these three with it.
        """
        return not (self.adaptive and self.budgeted is False)


def read_page(answer: bytes) -> tuple[list[ModelFacts], str]:
    """The models of one page, and the id after which the next page begins; empty on the last.

    Raises:
        EngineStartFailed: it is not JSON at all.
    """
    try:
        page = msgspec.json.decode(answer, type=dict[str, Any])
    except NOT_JSON as error:
        raise EngineStartFailed("the model list is not JSON: is --endpoint right?") from error
    data = page.get("data")
    entries = data if isinstance(data, list) else []
    last = page.get("last_id")
    return (
        [
            _facts(entry)
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        ],
        last if page.get("has_more") is True and isinstance(last, str) else "",
    )


def _facts(entry: Mapping[str, Any]) -> ModelFacts:
    capabilities = entry.get("capabilities")
    thinking = _inner(capabilities, "thinking", "types")
    effort = _inner(capabilities, "effort")
    display_name = entry.get("display_name")
    return ModelFacts(
        entry["id"],
        display_name=display_name if isinstance(display_name, str) else "",
        # vLLM, which speaks this API too, says max_model_len.
        context_tokens=_count(entry.get("max_input_tokens")) or _count(entry.get("max_model_len")),
        output_tokens_max=_count(entry.get("max_tokens")),
        images=_supported(capabilities, "image_input"),
        schemas=_supported(capabilities, "structured_outputs"),
        adaptive=_supported(thinking, "adaptive"),
        budgeted=_supported(thinking, "enabled"),
        thinking_off=_supported(thinking, "disabled"),
        efforts=(
            frozenset(level for level in _EFFORT_LEVELS if _supported(effort, level))
            if _supported(capabilities, "effort") is not None
            else None
        ),
    )


def _inner(value: object, *names: str) -> Mapping[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _supported(holder: object, name: str) -> bool | None:
    supported = _inner(holder, name).get("supported")
    return supported if isinstance(supported, bool) else None


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
