"""``GET /v1/models`` and ``GET /v1/models/{id}``: what the mesh serves, once per name."""

from __future__ import annotations

from typing import Any

from aimo_node.dispatch.inference import InferenceDoor
from aimo_node.domain.ids import split_pinned
from aimo_node.domain.models import ModelInfo
from aimo_node.errors import ModelNotFound

OWNER = "aimo"


def model_list(door: InferenceDoor, created: int) -> dict[str, Any]:
    """All models some healthy provider serves, in OpenAI's list shape.

    Args:
        created: seconds since the epoch; a mesh has no better date than the node's start.
    """
    return {"object": "list", "data": [_model(info, created) for info in door.models()]}


def one_model(door: InferenceDoor, name: str, created: int) -> dict[str, Any]:
    """The model called `name`, which may be pinned to a provider as ``peer:model``.

    Raises:
        ModelNotFound: nobody serves it.
    """
    peer, plain = split_pinned(name)
    offered = list(door.models())
    if peer is not None:
        offered = [info for view in door.providers() if view.peer == peer for info in view.models]
    for info in offered:
        if info.name == plain:
            return _model(info, created, name)
    raise ModelNotFound(
        f"The model '{name}' does not exist, or nobody serves it now.", param="model"
    )


def _model(info: ModelInfo, created: int, name: str = "") -> dict[str, Any]:
    return {
        "id": name or info.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "context_length": info.context_tokens or None,
        "digest": info.digest.hex() or None,
        "state": info.state.text,
        "endpoints": [endpoint.name.lower() for endpoint in info.endpoints],
        "features": [feature.value for feature in info.features],
        "price": {"input": info.price_in, "output": info.price_out},
    }
