"""Decides which of an upstream's models are offered, and under which names. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import Feature, ModelInfo
from aimo_node.errors import EngineStartFailed
from providers.upstreams.model_list import ListedModel

EVERY_MODEL: Final = "*"
MODELS_MAX: Final = 64
"""What a provider's descriptor has room for."""

NAMES_BYTES_MAX: Final = 5_000
"""All names together: they stand in the descriptor twice, and it has room for 16 KiB."""

MODELS_NAMED_MAX: Final = 20
"""In an error message; some services offer hundreds."""

DEFAULT_FEATURES: Final = (Feature.TOOLS, Feature.JSON_SCHEMA, Feature.LOGPROBS)
"""What common servers can do; the owner corrects it by ``--features``."""

DEFAULT_ENDPOINTS: Final = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS)
"""Where the list says nothing; the owner corrects it by ``--endpoints``."""

Offer = Mapping[ModelName, ListedModel]
"""The upstream's models by their names in the mesh."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the owner wants offered.

    Attributes:
        models: the upstream's names by those in the mesh; wins over `model`.
        model: the upstream's name of one, ``*`` for all it has, empty for the only one it has.
        served_name: name of `model` in the mesh.
        endpoints, features: of every model; None takes what the list says, or the defaults.
        context_tokens: of every model; 0 takes what the list says.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    served_name: str = ""
    endpoints: tuple[Endpoint, ...] | None = None
    features: tuple[Feature, ...] | None = None
    context_tokens: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The upstream's names that are wanted; empty if it decides."""
        if self.models:
            return tuple(self.models.values())
        return (self.model,) if self.model not in {"", EVERY_MODEL} else ()


def on_trust(wish: Wish, unlisted: Callable[[str], ListedModel] = ListedModel) -> Offer:
    """The offer at an upstream that lists nothing; empty if the wish names no model.

    Args:
        unlisted: what is taken for granted of a model, by the upstream's name for it.
    """
    if wish.models:
        return {ModelName(name): unlisted(own) for name, own in wish.models.items()}
    return {ModelName(wish.served_name or name): unlisted(name) for name in wish.names}


def first_offer(wish: Wish, listed: Sequence[ListedModel]) -> Offer:
    """The offer at the start, when everything wanted has to be there.

    Raises:
        EngineStartFailed: something is not there; the message lists what is.
    """
    names = [model.name for model in listed]
    offered = ", ".join(names[:MODELS_NAMED_MAX]) or "nothing"
    if len(names) > MODELS_NAMED_MAX:
        offered += f" and {len(names) - MODELS_NAMED_MAX} more"
    for wanted in wish.names:
        if wanted not in names:
            nearest = difflib.get_close_matches(wanted, names, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise EngineStartFailed(
                f"the upstream has no model {wanted!r}{hint}; it offers {offered}"
            )
    offer = next_offer(wish, listed, {})
    if not offer and wish.model != EVERY_MODEL:
        raise EngineStartFailed(
            f"name one of the upstream's models with --model, or * for all: {offered}"
        )
    return offer


def next_offer(wish: Wish, listed: Sequence[ListedModel], before: Offer) -> Offer:
    """The offer by a later list: what is gone vanishes, what is back or new appears.

    Args:
        before: the offer until now; the only model of an upstream is kept when it gets company.
    """
    by_name = {model.name: model for model in listed}
    if wish.models:
        pairs = wish.models.items()
        return {ModelName(name): by_name[own] for name, own in pairs if own in by_name}
    if wish.model == EVERY_MODEL:
        return {ModelName(model.name): model for model in _that_fit(listed)}
    wanted = wish.model
    if not wanted:
        kept = [model.name for model in before.values() if model.name in by_name]
        wanted = kept[0] if kept else (listed[0].name if len(listed) == 1 else "")
    found = by_name.get(wanted)
    return {ModelName(wish.served_name or found.name): found} if found else {}


def described(wish: Wish, offer: Offer) -> tuple[ModelInfo, ...]:
    """The offer as the mesh sees it. What weights an upstream has cannot be known: no digest."""
    return tuple(
        ModelInfo(
            name,
            context_tokens=wish.context_tokens or model.context_tokens,
            endpoints=endpoints_of(wish, model),
            features=_features(wish, model),
        )
        for name, model in offer.items()
    )


def endpoints_of(wish: Wish, model: ListedModel) -> tuple[Endpoint, ...]:
    """What may be asked of a model: what the owner says, else the list, else the usual."""
    return wish.endpoints or model.endpoints or DEFAULT_ENDPOINTS


def _features(wish: Wish, model: ListedModel) -> tuple[Feature, ...]:
    if wish.features is not None:
        return wish.features
    if model.endpoints == (Endpoint.EMBEDDINGS,):
        return ()
    can = dict.fromkeys((*DEFAULT_FEATURES, *model.features))
    return tuple(feature for feature in can if feature not in model.lacks)


def _that_fit(listed: Sequence[ListedModel]) -> list[ListedModel]:
    """As many as a descriptor holds, in the order of their names so that they stay the same."""
    fitting: list[ListedModel] = []
    left = NAMES_BYTES_MAX
    for model in sorted(listed, key=lambda model: model.name):
        left -= len(model.name.encode())
        if left < 0 or len(fitting) == MODELS_MAX:
            break
        fitting.append(model)
    return fitting
