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


class EngineState(enum.IntEnum):
    """Where an engine is in its life; the numbers are those of the wire.

    NOT_INSTALLED: a package it needs is missing. DOWNLOADING: its model is on the way. INSTALLED:
    everything is there, nothing is loaded yet. STARTING: loading, also again after a death.
    RUNNING: answers. STOPPING: finishes what runs. STOPPED: unloaded. ERROR: given up.
    """

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    ERROR = 4
    NOT_INSTALLED = 5
    DOWNLOADING = 6
    INSTALLED = 7

    @property
    def text(self) -> str:
        """The lower-case name, as in ``/v1/providers`` and ``aimo engine status``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of one provider.

    Attributes:
        context_tokens: prompt and answer together; 0 if unknown.
        digest: sha256 over everything that makes the model's answers, empty if unknown.
        price_in, price_out: micro-USD per million tokens.
        state: RUNNING when it answers at once; anything else means that a request loads it first.
    """

    name: ModelName
    context_tokens: int = 0
    digest: bytes = b""
    endpoints: tuple[Endpoint, ...] = (Endpoint.CHAT,)
    features: tuple[Feature, ...] = ()
    price_in: int = 0
    price_out: int = 0
    state: EngineState = EngineState.RUNNING


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One engine of a provider, as others see it.

    Attributes:
        label: names it within its provider, such as ``vllm`` or ``llama-2``.
        engine: which kind it is, such as ``vllm``.
        models: what it serves, or will once it runs, as far as is known.
        requests_max: what it serves at a time; 0 if unknown.
    """

    label: str
    engine: str
    state: EngineState
    models: tuple[ModelName, ...] = ()
    requests_max: int = 0


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
        prefix_hits: share 0–1 of prompt tokens found in the prefix cache lately; 0 if unknown.
        first_token_seconds: from a request's arrival to its first token lately; 0 if unknown.
    """

    load: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    prefix_hits: float = 0.0
    first_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a provider says about itself, signed by its peer key.

    Attributes:
        incarnation: when the provider started, in ms since the epoch; grows with each start.
        revision: grows with each descriptor of one incarnation.
        addresses: multiaddrs, each ending in ``/p2p/PEER``.
        engine: the kinds of its engines, separated by commas.
        engine_state: RUNNING when any of them takes requests.
        requests_max: what it serves at a time; 0 if unknown.
        engines: each of them; `models` holds only what may be asked for now.
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
    engines: tuple[EngineInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """A provider's latest heartbeat; (incarnation, seq) only ever grows."""

    peer: PeerId
    incarnation: int
    seq: int
    health: Health
    load: Load
