"""Reads Copilot's list of models: which of them can chat, and what each can do; pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import Feature, ModelInfo
from aimo_node.errors import EngineStartFailed

MODELS_MAX: Final = 64
"""As many as one provider can describe; Copilot has about thirty."""

CHAT_PATH: Final = "/chat/completions"

_FEATURES: Final = {
    "tool_calls": Feature.TOOLS,
    "vision": Feature.VISION,
    "structured_outputs": Feature.JSON_SCHEMA,
}


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model that can chat.

    Attributes:
        context_tokens: prompt and answer together; 0 if unknown.
        answer_tokens_max: 0 if unknown.
    """

    name: str
    context_tokens: int = 0
    answer_tokens_max: int = 0
    features: tuple[Feature, ...] = ()

    def info(self, served_name: str) -> ModelInfo:
        """As it is offered; nobody outside GitHub knows its weights, so it has no digest."""
        return ModelInfo(
            ModelName(served_name),
            context_tokens=self.context_tokens,
            endpoints=(Endpoint.CHAT,),
            features=self.features,
        )


def read_catalogue(answer: Mapping[str, Any] | None) -> list[CatalogueModel]:
    """The models that can chat and that the owner has not switched off, each once."""
    entries = (answer or {}).get("data")
    found: dict[str, CatalogueModel] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and _can_chat(entry):
            found.setdefault(entry["id"], _model(entry))
    return list(found.values())[:MODELS_MAX]


def choose(
    wanted: Mapping[str, str], listed: Sequence[CatalogueModel]
) -> dict[str, CatalogueModel]:
    """The models to serve, by the name each has here.

    Args:
        wanted: Copilot's name of each, by the name here; empty takes all there are.

    Raises:
        EngineStartFailed: one of them is not there; the message lists what is.
    """
    known = {model.name: model for model in listed}
    if not known:
        raise EngineStartFailed("Copilot offers this account no model that can chat")
    for name in wanted.values():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            offered = ", ".join(known)
            raise EngineStartFailed(f"Copilot has no model {name!r}{hint}; it offers {offered}")
    if not wanted:
        return known
    return {served: known[name] for served, name in wanted.items()}


def _can_chat(entry: Mapping[str, Any]) -> bool:
    endpoints = entry.get("supported_endpoints")
    if isinstance(endpoints, list) and endpoints and CHAT_PATH not in endpoints:
        return False
    # A model whose terms the owner has not accepted, or which their company forbids.
    if _mapping(entry.get("policy")).get("state", "enabled") != "enabled":
        return False
    return _mapping(entry.get("capabilities")).get("type") == "chat"


def _model(entry: Mapping[str, Any]) -> CatalogueModel:
    capabilities = _mapping(entry.get("capabilities"))
    supports = _mapping(capabilities.get("supports"))
    limits = _mapping(capabilities.get("limits"))
    answer = _count(limits.get("max_output_tokens"))
    return CatalogueModel(
        entry["id"],
        _context_tokens(limits, answer),
        answer,
        tuple(feature for name, feature in _FEATURES.items() if supports.get(name) is True),
    )


def _context_tokens(limits: Mapping[str, Any], answer: int) -> int:
    """Often the prompt may fill only a part of the window, so the smaller sum holds."""
    window = _count(limits.get("max_context_window_tokens"))
    prompt = _count(limits.get("max_prompt_tokens"))
    both = prompt + answer if prompt else 0
    return min(window, both) if window and both else window or both


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 31 else 0
