"""Reads an upstream's model list and chooses from it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aimo_node.errors import EngineStartFailed
from providers.answers import NOT_JSON

MODELS_NAMED_MAX: Final = 20
"""In an error message; some services offer hundreds."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One entry of an upstream's model list.

    Attributes:
        owner: ``vllm`` for a vLLM server, which can salt its prompt cache.
    """

    name: str
    owner: str = ""
    context_tokens: int = 0


def choose_model(wanted: str, listed: Sequence[ListedModel]) -> ListedModel:
    """The entry of the wanted model, or the only one there is.

    Raises:
        EngineStartFailed: it is not there; the message lists what is.
    """
    for model in listed:
        if model.name == wanted:
            return model
    if not wanted and len(listed) == 1:
        return listed[0]
    names = [model.name for model in listed]
    offered = ", ".join(names[:MODELS_NAMED_MAX]) or "nothing"
    if not wanted:
        raise EngineStartFailed(f"name one of the upstream's models with --model: {offered}")
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise EngineStartFailed(f"the upstream has no model {wanted!r}{hint}; it offers {offered}")


def read_models(answer: bytes) -> list[ListedModel]:
    """The entries of ``GET /models``; what is no model is passed over.

    Raises:
        EngineStartFailed: it is not JSON at all.
    """
    try:
        entries = msgspec.json.decode(answer, type=dict[str, Any]).get("data")
    except NOT_JSON as error:
        raise EngineStartFailed("the model list is not JSON: is --endpoint right?") from error
    entries = entries if isinstance(entries, list) else []
    return [
        ListedModel(entry["id"], str(entry.get("owned_by", "")), _context_tokens(entry))
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    ]


def _context_tokens(entry: Mapping[str, Any]) -> int:
    """Where vLLM and llama.cpp tell it."""
    meta = entry.get("meta")
    found = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else 0)
    return found if isinstance(found, int) and found > 0 else 0
