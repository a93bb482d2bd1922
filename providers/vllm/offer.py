"""Asks a vLLM that has just become ready what it serves: models, adapters, endpoints, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import Feature, ModelInfo
from aimo_node.errors import EngineFailed, EngineStartFailed
from providers.answers import NOT_JSON
from providers.http.upstream import Upstream, ask_once
from providers.model_digest import gguf_parts, model_digest, snapshot_parts
from providers.vllm.arguments import VllmPlan
from providers.vllm.hub_cache import model_folder, snapshot
from providers.vllm.tools import read_config

MODELS_MAX: Final = 256
"""The model and its adapters; more do not fit into a descriptor anyway."""

ANSWER_SECONDS: Final = 30.0
"""The first request after a start compiles this and that."""

PATHS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.COMPLETIONS: "/v1/completions",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}

_VISION_KEYS: Final = ("vision_config", "vision_tower", "vision_encoder", "mm_vision_tower")

_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Offer:
    """What one vLLM serves.

    Attributes:
        models: the model first, then its LoRA adapters.
        version: vLLM's own; empty if it does not say.
    """

    models: tuple[ModelInfo, ...]
    version: str = ""

    @property
    def names(self) -> frozenset[ModelName]:
        """Of all models."""
        return frozenset(model.name for model in self.models)


class _Card(msgspec.Struct):
    """One entry of ``/v1/models``; an adapter has a parent, and its folder as root."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card] = []


async def read_offer(upstream: Upstream, plan: VllmPlan) -> Offer:
    """Everything about what is served now.

    Raises:
        EngineFailed: it does not answer.
        EngineStartFailed: it serves nothing the mesh knows, or its files cannot be read.
    """
    cards = await _cards(upstream)
    endpoints = [endpoint for endpoint in PATHS if await _has_route(upstream, PATHS[endpoint])]
    if Endpoint.CHAT in endpoints and not await _can_chat(upstream, plan.name):
        endpoints.remove(Endpoint.CHAT)
    if not endpoints:
        raise EngineStartFailed("the model neither generates text nor embeds it")
    folder = await trio.to_thread.run_sync(model_folder, plan)
    config = await trio.to_thread.run_sync(read_config, folder) if folder else {}
    features = features_of(plan, endpoints, config)
    context_tokens = next((card.max_model_len or 0 for card in cards if not card.parent), 0)
    digests = await trio.to_thread.run_sync(_digests, cards, folder, plan)
    models = [
        ModelInfo(
            ModelName(card.id),
            context_tokens=card.max_model_len or context_tokens,
            digest=digest,
            endpoints=tuple(endpoints),
            features=features,
        )
        for card, digest in zip(cards, digests, strict=True)
    ]
    return Offer(tuple(models), await _version(upstream))


def features_of(
    plan: VllmPlan, endpoints: Sequence[Endpoint], config: Mapping[str, Any]
) -> tuple[Feature, ...]:
    """What a model can do beyond plain text.

    Args:
        config: the model's config.json, empty if unknown.
    """
    features = []
    if Endpoint.CHAT in endpoints:
        if plan.tool_parser:
            features.append(Feature.TOOLS)
        if plan.sees_images and any(config.get(key) for key in _VISION_KEYS):
            features.append(Feature.VISION)
        features.append(Feature.CONTINUE)
    if Endpoint.COMPLETIONS in endpoints:
        features += [Feature.JSON_SCHEMA, Feature.LOGPROBS]
    return tuple(features)


async def _cards(upstream: Upstream) -> list[_Card]:
    status, answer = await ask_once(upstream, "/v1/models", timeout_seconds=ANSWER_SECONDS)
    try:
        cards = msgspec.json.decode(answer, type=_Cards).data[:MODELS_MAX]
    except NOT_JSON as error:
        raise EngineFailed("vLLM's list of models is not to be understood") from error
    if status != 200 or not cards:
        raise EngineFailed(f"vLLM lists no models (HTTP status {status})")
    # The model comes before what is built upon it, wherever it stands.
    return sorted(cards, key=lambda card: card.parent is not None)


async def _has_route(upstream: Upstream, path: str) -> bool:
    """Asked in the wrong way, a route that is there refuses the method, not the path."""
    status, _ = await ask_once(upstream, path, timeout_seconds=ANSWER_SECONDS)
    return status == 405


async def _can_chat(upstream: Upstream, name: ModelName) -> bool:
    """Whether the model has a chat template; a base model has none."""
    body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
    status, _ = await ask_once(
        upstream, "/tokenize", msgspec.json.encode(body), timeout_seconds=ANSWER_SECONDS
    )
    return status == 200


async def _version(upstream: Upstream) -> str:
    _, answer = await ask_once(upstream, "/version", timeout_seconds=ANSWER_SECONDS)
    try:
        return str(msgspec.json.decode(answer, type=dict[str, Any]).get("version", ""))
    except NOT_JSON:
        return ""


def _digests(cards: Sequence[_Card], folder: Path | None, plan: VllmPlan) -> list[bytes]:
    """One for each card; blocks while it reads what is not at the hub, once for each file."""
    cache_file = plan.state_folder / "digests.json"
    return [_digest(card, folder, plan, cache_file) for card in cards]


def _digest(card: _Card, folder: Path | None, plan: VllmPlan, cache_file: Path) -> bytes:
    adapter = _adapter_folder(card, plan) if card.parent else None
    if card.parent and adapter is None:
        return b""
    weights = plan.folder
    try:
        if folder is not None:
            parts = snapshot_parts(folder, cache_file, [adapter] if adapter else [])
            return model_digest(parts)
        if weights is not None and weights.suffix == ".gguf" and adapter is None:
            return model_digest(gguf_parts(weights, cache_file))
    except EngineStartFailed as error:
        # vLLM reads more kinds of files than we know; it serves, so the model is good.
        _log.warning("engine.no_digest", model=card.id, error=str(error))
    return b""


def _adapter_folder(card: _Card, plan: VllmPlan) -> Path | None:
    root = card.root or ""
    path = Path(root).expanduser()
    if path.is_absolute() or path.is_dir():
        return path if path.is_dir() else None
    return snapshot(root, plan) if root else None
