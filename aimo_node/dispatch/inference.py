"""The vocabulary between the HTTP door and the dispatcher: a request, its answer, the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aimo_node.domain.answer import AnswerPart
from aimo_node.domain.ids import Endpoint, ModelName, PeerId, RequestId
from aimo_node.domain.links import LinkFacts
from aimo_node.domain.models import EngineInfo, ModelInfo


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One inference as the edge understood it.

    Attributes:
        model: as the consumer wrote it; ``peer:model`` pins a provider.
        body: the consumer's JSON object, validated; the provider allow-lists its parameters.
        consumer: opaque name of who asks, for limits and cache salts; empty on keyless loopback.
        provider: pinned by the route instead of the model name.
    """

    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    deadline_seconds: float
    consumer: str = ""
    provider: PeerId | None = None


class Answer(Protocol):
    """An answer on its way. One task reads it; `cancel` must be called in the end, always.

    Attributes:
        path: of the link to `provider`; empty while there is none.
        model_digest: of the model as the provider says it serves it; empty if unknown.
    """

    request_id: RequestId
    provider: PeerId
    path: str
    attempts: int
    model: ModelName
    model_digest: bytes

    async def receive(self, silence_seconds: float | None = None) -> Sequence[AnswerPart]:
        """The parts that have arrived, at least one; empty after `silence_seconds` without any.

        The last part is a `Finish`. Before the first part a lost provider is replaced by the next
        candidate without the caller noticing; `provider`, `model_digest`, `path` and `attempts`
        follow.

        Raises:
            CodedError: the request failed; nothing comes after it.
        """

    def cancel(self) -> None:
        """The consumer left or has the whole answer; idempotent."""


@dataclass(frozen=True, slots=True)
class ProviderView:
    """One line of ``/v1/providers``.

    Attributes:
        models: what it offers, also while it is offline.
        engine: the kinds of its engines.
        engines: each of them, in whatever state; empty if it does not say.
        kv_used, prefix_hits, first_token_seconds: see `Load`.
        trusted: whether this edge may ask it.
        link: which way leads there, and why; None while there is no link.
    """

    peer: PeerId
    models: tuple[ModelInfo, ...]
    status: str
    running: int
    waiting: int
    load: float
    path: str
    engine: str
    region: str
    version: str
    seen_seconds_ago: float
    engines: tuple[EngineInfo, ...] = ()
    kv_used: float = 0.0
    prefix_hits: float = 0.0
    first_token_seconds: float = 0.0
    trusted: bool = True
    link: LinkFacts | None = None


class InferenceDoor(Protocol):
    """What the HTTP door needs; `dispatch.dispatcher.Dispatcher` is it."""

    async def open(
        self, request: InferenceRequest, admitted: Callable[[Answer], None] | None = None
    ) -> Answer:
        """Admit the request and send it to the first candidate.

        Args:
            admitted: called with the answer once there is somebody to ask: it says who was asked
                even if this raises then.

        Raises:
            CodedError: refused, or every candidate failed.
        """

    def providers(self) -> Sequence[ProviderView]:
        """Everybody this node knows, also those that are offline."""

    def models(self) -> Sequence[ModelInfo]:
        """Each model some healthy provider serves, once, by name."""

    @property
    def draining(self) -> bool:
        """True once the node takes no new requests."""
