"""The engine port: what a provider needs from the program that runs a model.

One engine object lives in the node; the model itself runs in a child process or on a server.
Contract suite: `aimo_node.testing.engine_contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.domain.models import EngineState, Health, Load, ModelInfo


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the owner configured for one engine.

    Attributes:
        state_folder: where the engine may keep sockets, logs and downloads; exists, mode 0700.
        engine_args: the owner's ``--engine-args``, already split.
        requests_max: concurrent requests the node will send; the engine sizes itself to it.
        api_key_file: a file holding the upstream's key; read by the engine, never logged.
        api_key_env: name of an environment variable holding it, instead of a file.
        served_name: the name the model has in the mesh, if not the engine's own.
        models: several models by their name in the mesh, each with the engine's own name; `model`
            and `served_name` are empty then.
        media_domains: hosts from which the engine may fetch media; empty forbids remote media.
        owner_only: this node has an edge that only its owner can reach, on loopback; an engine
            that may serve nobody else refuses to be made without.
    """

    state_folder: Path
    model: str = ""
    endpoint: str = ""
    api_key_file: Path | None = None
    engine_args: Sequence[str] = ()
    requests_max: int = 0
    served_name: str = ""
    api_key_env: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    media_domains: frozenset[str] = frozenset()
    owner_only: bool = False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the engine gets it: parameters are already allow-listed and clamped.

    Attributes:
        body: canonical OpenAI JSON as Python values; ``model`` is the engine's own model name.
        stream: False lets an engine ask its upstream for one whole answer.
        salt: names the consumer to prompt caches; two consumers never share an entry.
    """

    request_id: RequestId
    endpoint: Endpoint
    model: ModelName
    body: Mapping[str, Any]
    stream: bool = True
    salt: str = ""


class AnswerSink(Protocol):
    """Where an engine puts its answer. Calls do not block; order is kept.

    For a request that is not streamed the same calls are made: all deltas (usually one), then
    `finish`. An engine calls `finish` at most once and nothing after it.
    """

    def text(self, delta: str) -> None:
        """Append plain text of choice 0."""

    def json(self, choices: bytes) -> None:
        """Append a JSON delta, see `aimo_node.domain.answer.JsonDelta`."""

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """End the answer."""

    @property
    def congested(self) -> bool:
        """True when the consumer is slower than the engine: call `drain` before going on."""

    async def drain(self) -> None:
        """Wait until not congested.

        Raises:
            RequestCancelled: the consumer did not move for too long.
        """


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine offers once it is ready.

    Attributes:
        owner_only: never told to the mesh, served to the owner's own edge alone.
    """

    engine: str
    models: tuple[ModelInfo, ...]
    requests_max: int
    version: str = ""
    owner_only: bool = False


class Progress(Protocol):
    """Told one line, such as ``loading weights 40 %``, whenever there is news during start."""

    def __call__(self, line: str, state: EngineState = EngineState.STARTING) -> None:
        """`state` is DOWNLOADING, INSTALLED or STARTING."""


class Engine(Protocol):
    """An engine under the node's care.

    Life: `run` once, then `stream` and the others from any task, then `drain`, then `kill`.
    An engine that dies is restarted by itself with back-off; meanwhile `health` is OFFLINE and
    `stream` raises `EngineFailed`. It calls `ready` again after each restart.
    """

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Start the engine, call `ready` once it can answer, and look after it until cancelled.

        On cancellation everything the engine started is gone before this returns.

        Raises:
            EngineStartFailed: it cannot start; the message names the fix.
        """

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """Produce the answer; returns after `sink.finish`.

        Cancelling this call stops the generation: the upstream's socket is closed at once.

        Raises:
            ModelNotFound, InvalidRequest, ContextLengthExceeded: fix the request.
            Overloaded, EngineFailed: try elsewhere (EngineFailed also in mid-stream).
        """

    async def count_tokens(self, request: EngineRequest) -> int:
        """Tokens of the prompt by the model's own tokenizer.

        Raises:
            EngineFailed, InvalidRequest.
        """

    def capabilities(self) -> Capabilities:
        """What is offered now; stable between two calls of `ready`."""

    def health(self) -> Health:
        """HEALTHY when it answers, DEGRADED when it has been silent for a while, OFFLINE while it
        cannot answer: before it is ready, while it is restarted, and when it was given up."""

    def load(self) -> Load:
        """How busy it is right now, by its own account where it gives one."""

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""

    def kill(self) -> None:
        """End everything at once, without waiting; safe to call twice and after `run`."""


EngineFactory = Callable[[EngineSettings], Engine]
"""What an entry point of group ``aimo_node.engines`` names: makes one engine, starts nothing.

Raises:
    ConfigError: the settings cannot work; the message names the flag and the fix.
"""
