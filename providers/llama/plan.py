"""How llama.cpp is to run: what the owner said, completed by what the model's file says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import Feature, ModelInfo
from aimo_node.errors import EngineStartFailed
from providers.llama.free_memory import has_accelerator, memory_free_bytes
from providers.llama.gguf_head import GgufHead, read_head
from providers.model_digest import gguf_files, gguf_parts, model_digest

CONTEXT_TOKENS_DEFAULT: Final = 8192
"""Of one request; the key-value cache of a common 8B model then takes one gigabyte per slot."""

REQUESTS_MAX_DEFAULT: Final = 4
GIGABYTE: Final = 1e9

POOLINGS: Final = {"mean": 1, "cls": 2, "last": 3}
"""How a text becomes one vector, by llama.cpp's numbers."""

CHECKED_KEPT_MAX: Final = 256
CHECKED_BYTES_MAX: Final = 65_536

_ANSWERS: Final = (Endpoint.CHAT, Endpoint.COMPLETIONS)
_FEATURES: Final = (Feature.TOOLS, Feature.JSON_SCHEMA, Feature.LOGPROBS, Feature.CONTINUE)


@dataclass(frozen=True, slots=True)
class LlamaPlan:
    """How llama.cpp is to run.

    Attributes:
        context_tokens: of each slot; 0 takes the model's own, at most `CONTEXT_TOKENS_DEFAULT`.
        gpu_layers: -1 leaves it to llama.cpp.
        pooling: a name in `POOLINGS` makes embeddings with a model that was made for answers.
        endpoints: what the model is served for.
        embedding_numbers: of one vector.
        digest: of the model, once known.
        is_checked: llama.cpp has looked through this file's weights before and found no damage.
    """

    weights: Path
    name: ModelName
    state_folder: Path
    slots: int = REQUESTS_MAX_DEFAULT
    context_tokens: int = 0
    threads: int = 1
    gpu_layers: int = -1
    pooling: str = ""
    endpoints: tuple[Endpoint, ...] = _ANSWERS
    embedding_numbers: int = 0
    digest: bytes = b""
    is_checked: bool = False

    @property
    def embeds(self) -> bool:
        """Whether the model is served for embeddings."""
        return Endpoint.EMBEDDINGS in self.endpoints

    def child_settings(self, socket: Path) -> dict[str, Any]:
        """What `providers.llama.server` is told."""
        return {
            "model": str(self.weights),
            "name": self.name,
            "socket": str(socket),
            "slots": self.slots,
            "context_tokens": self.context_tokens,
            "threads": self.threads,
            "gpu_layers": self.gpu_layers,
            "embeddings": self.embeds,
            "pooling": POOLINGS.get(self.pooling, -1),
            "check_tensors": not self.is_checked,
        }

    def model(self) -> ModelInfo:
        """What is offered; context, digest and endpoints are known once the plan is complete."""
        return ModelInfo(
            self.name,
            context_tokens=self.context_tokens,
            digest=self.digest,
            endpoints=self.endpoints,
            features=_FEATURES if Endpoint.CHAT in self.endpoints else (),
        )


def completed(plan: LlamaPlan) -> LlamaPlan:
    """The plan with what the model's file says; blocks, for seconds per gigabyte the first time.

    Raises:
        EngineStartFailed: this file cannot be served here.
    """
    head = read_head(plan.weights)
    endpoints = _endpoints(plan, head)
    check_memory(plan)
    digest = model_digest(gguf_parts(plan.weights, plan.state_folder / "digests.json"))
    own = head.context_tokens or CONTEXT_TOKENS_DEFAULT
    wanted = plan.context_tokens or CONTEXT_TOKENS_DEFAULT
    pooling = plan.pooling if head.pooling < 0 else ""
    if Endpoint.CHAT not in endpoints and head.pooling <= 0:
        pooling = pooling or "mean"  # an encoder that does not say how
    return replace(
        plan,
        context_tokens=min(own, wanted),
        digest=digest,
        endpoints=endpoints,
        pooling=pooling,
        embedding_numbers=head.embedding_numbers,
        is_checked=digest.hex() in _read_checked(plan),
    )


def check_memory(plan: LlamaPlan, free_bytes: int | None = None) -> None:
    """See whether the weights can fit into memory, before minutes are spent on reading them.

    Args:
        free_bytes: None asks the system; with a GPU nothing is assumed about it.

    Raises:
        EngineStartFailed: they cannot.
    """
    if free_bytes is None:
        if plan.gpu_layers != 0 and has_accelerator():
            return
        free_bytes = memory_free_bytes()
    needed = sum(path.stat().st_size for path in gguf_files(plan.weights) if path.exists())
    if free_bytes is not None and needed > free_bytes:
        raise EngineStartFailed(
            f"{plan.name} needs about {needed / GIGABYTE:.1f} GB of memory, "
            f"{free_bytes / GIGABYTE:.1f} GB are free: take a smaller quantization of it"
        )


def remember_checked(plan: LlamaPlan) -> None:
    """llama.cpp has looked through the weights and found no damage; it need not do so again."""
    if plan.is_checked or not plan.digest:
        return
    kept = [*_read_checked(plan), plan.digest.hex()][-CHECKED_KEPT_MAX:]
    file = _checked_file(plan)
    unfinished = file.with_name(file.name + ".new")
    try:
        unfinished.write_text(json.dumps(kept), encoding="utf-8")
        unfinished.replace(file)
    except OSError:
        return  # then it looks again at the next start


def _endpoints(plan: LlamaPlan, head: GgufHead) -> tuple[Endpoint, ...]:
    if head.ranks:
        raise EngineStartFailed(
            f"{plan.weights} is a model that ranks documents; the llama engine serves models for "
            "chat, completions and embeddings"
        )
    if head.embeds:
        return (Endpoint.EMBEDDINGS,)
    return (*_ANSWERS, Endpoint.EMBEDDINGS) if plan.pooling else _ANSWERS


def _checked_file(plan: LlamaPlan) -> Path:
    return plan.state_folder / "llama-checked.json"


def _read_checked(plan: LlamaPlan) -> list[str]:
    try:
        with _checked_file(plan).open("rb") as file:
            found = json.loads(file.read(CHECKED_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return []
    known = found if isinstance(found, list) else []
    return [digest for digest in known if re.fullmatch(r"[0-9a-f]{64}", str(digest))]
