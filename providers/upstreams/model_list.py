"""Reads an upstream's model list: which models there are, and what the list says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import msgspec

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import EngineStartFailed
from providers.answers import NOT_JSON

NAME_CHARACTERS_MAX: Final = 256
"""Of a model's name in the mesh; an entry with a longer one is passed over."""

CONTEXT_TOKENS_MAX: Final = 1 << 30

_CONTEXT_FIELDS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
"""vLLM; OpenRouter and Together; Groq; Mistral."""

_TALKS: Final = (Endpoint.CHAT, Endpoint.COMPLETIONS)
_ENDPOINTS_BY_TYPE: Final[Mapping[str, tuple[Endpoint, ...]]] = {
    "chat": _TALKS,
    "language": _TALKS,
    "code": _TALKS,
    "llm": _TALKS,
    "vlm": _TALKS,
    "completion": _TALKS,
    "embedding": (Endpoint.EMBEDDINGS,),
    "embeddings": (Endpoint.EMBEDDINGS,),
    "image": (Endpoint.IMAGES,),
}
"""As Together, LM Studio, Copilot and llama.cpp call what a model is for."""

_PATHS: Final = {
    "/chat/completions": Endpoint.CHAT,
    "/completions": Endpoint.COMPLETIONS,
    "/embeddings": Endpoint.EMBEDDINGS,
    "/images/generations": Endpoint.IMAGES,
}
_FEATURE_WORDS: Final = {
    "tools": Feature.TOOLS,
    "tool_calls": Feature.TOOLS,
    "tool_use": Feature.TOOLS,
    "function_calling": Feature.TOOLS,
    "vision": Feature.VISION,
    "multimodal": Feature.VISION,
    "structured_outputs": Feature.JSON_SCHEMA,
    "logprobs": Feature.LOGPROBS,
}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One entry of an upstream's model list.

    Attributes:
        owner: ``vllm`` for a vLLM server, which can salt its prompt cache.
        endpoints: empty if the list says nothing about them.
        features, lacks: what the list says it can do, and what it cannot.
    """

    name: str
    owner: str = ""
    context_tokens: int = 0
    endpoints: tuple[Endpoint, ...] = ()
    features: tuple[Feature, ...] = ()
    lacks: tuple[Feature, ...] = ()


def read_models(answer: bytes) -> list[ListedModel]:
    """The entries of ``GET /models``, each name once; what is no model is passed over.

    Raises:
        EngineStartFailed: it is not JSON at all.
    """
    try:
        entries = msgspec.json.decode(answer, type=dict[str, Any]).get("data")
    except NOT_JSON as error:
        raise EngineStartFailed("the model list is not JSON: is --endpoint right?") from error
    entries = entries if isinstance(entries, list) else []
    found: dict[str, ListedModel] = {}
    for entry in entries:
        name = entry.get("id") if isinstance(entry, dict) else None
        if _is_name(name):
            found.setdefault(name, _read_entry(name, entry))
    return list(found.values())


def _read_entry(name: str, entry: Mapping[str, Any]) -> ListedModel:
    owner = entry.get("owned_by")
    said = entry.get("capabilities")
    can, cannot = _words(said)
    if parameters := _strings(entry.get("supported_parameters")):
        can.update(parameters)
        cannot.update({"tools", "structured_outputs", "logprobs"} - set(parameters))
    architecture = entry.get("architecture")
    if isinstance(architecture, dict) and "image" in _strings(architecture.get("input_modalities")):
        can.add("vision")
    features = _features(can)
    return ListedModel(
        name,
        owner if isinstance(owner, str) else "",
        _context_tokens(entry),
        _endpoints(entry, said, can),
        features,
        tuple(feature for feature in _features(cannot) if feature not in features),
    )


def _features(words: set[str]) -> tuple[Feature, ...]:
    return tuple(sorted({_FEATURE_WORDS[word] for word in words & _FEATURE_WORDS.keys()}))


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()


def _words(said: object) -> tuple[set[str], set[str]]:
    """What is claimed and what denied: the items of a list, or the keys of an object by their
    values. Copilot nests them in ``supports``."""
    if not isinstance(said, dict):
        return set(_strings(said)), set()
    inner = said.get("supports")
    flags = {**said, **inner} if isinstance(inner, dict) else said
    can = {key for key, value in flags.items() if value is True}
    return can, {key for key, value in flags.items() if value is False}


def _endpoints(entry: Mapping[str, Any], said: object, words: set[str]) -> tuple[Endpoint, ...]:
    paths = [path.removeprefix("/v1") for path in _strings(entry.get("supported_endpoints"))]
    if named := tuple(dict.fromkeys(_PATHS[path] for path in paths if path in _PATHS)):
        return named
    kinds = [entry.get("type"), said.get("type") if isinstance(said, dict) else None]
    if isinstance(said, list):
        kinds += [word for word in ("completion", "embedding") if word in words]
    for kind in kinds:
        if isinstance(kind, str) and kind in _ENDPOINTS_BY_TYPE:
            return _ENDPOINTS_BY_TYPE[kind]
    return _TALKS if "completion_chat" in words else ()


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _context_tokens(entry: Mapping[str, Any]) -> int:
    meta = entry.get("meta")
    tells = [entry.get(name) for name in _CONTEXT_FIELDS]
    tells.append(meta.get("n_ctx") if isinstance(meta, dict) else None)
    for found in tells:
        if type(found) is int and 0 < found <= CONTEXT_TOKENS_MAX:
            return found
    return 0
