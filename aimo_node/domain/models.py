"""What a provider offers and how busy it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from aimo_node.domain.ids import Endpoint, ModelName, PeerId


class Feature(enum.StrEnum):
    """What a model can do beyond plain text."""

    TOOLS = "tools"
    VISION = "vision"
    JSON_SCHEMA = "json_schema"
    LOGPROBS = "logprobs"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of one provider.

    Attributes:
        context_tokens: prompt and answer together; 0 if unknown.
        digest: sha256 over everything that makes the model's answers, empty if unknown.
        price_in, price_out: micro-USD per million tokens.
    """

    name: ModelName
    context_tokens: int = 0
    digest: bytes = b""
    endpoints: tuple[Endpoint, ...] = (Endpoint.CHAT,)
    features: tuple[Feature, ...] = ()
    price_in: int = 0
    price_out: int = 0


class EngineState(enum.IntEnum):
    """Where an engine is in its life."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    DRAINING = 3
    FAILED = 4


class Health(enum.IntEnum):
    """Whether new requests should come."""

    HEALTHY = 0
    DEGRADED = 1
    OFFLINE = 2

    @property
    def text(self) -> str:
        """The lower-case name, as in ``/v1/providers``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is.

    Attributes:
        load: 0 idle … 1 at its limit.
        running, waiting: requests.
        kv_used: share 0–1 of the key-value cache in use.
    """

    load: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a provider says about itself, signed by its peer key.

    Attributes:
        incarnation: when the provider started, in ms since the epoch; grows with each start.
        revision: grows with each descriptor of one incarnation.
        addresses: multiaddrs, each ending in ``/p2p/PEER``.
        requests_max: what it serves at a time; 0 if unknown.
    """

    peer: PeerId
    incarnation: int
    models: tuple[ModelInfo, ...]
    addresses: tuple[str, ...] = ()
    engine: str = ""
    engine_state: EngineState = EngineState.STARTING
    requests_max: int = 0
    region: str = ""
    version: str = ""
    sealing_key: bytes = b""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A provider's latest heartbeat; (incarnation, seq) only ever grows."""

    peer: PeerId
    incarnation: int
    seq: int
    health: Health
    load: Load
