"""The openai engine: any OpenAI-compatible server that already runs, by URL or Unix socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import Feature, Health, Load, ModelInfo
from aimo_node.errors import (
    CodedError,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
)
from aimo_node.ports.engine import (
    AnswerSink,
    Capabilities,
    EngineRequest,
    EngineSettings,
    Progress,
)
from providers.admission import Admission
from providers.arguments import EngineArguments, integer_between, number_between
from providers.endpoints import read_key, split_endpoint
from providers.model_list import ListedModel, choose_model, read_models
from providers.openai_dialect import ask
from providers.unix_client import UnixUpstream
from providers.upstream import Upstream, ask_once

REQUESTS_MAX_DEFAULT: Final = 64
PROBE_SECONDS: Final = 5.0
PROBES_FAILED_MAX: Final = 6
"""After a minute of silence, by default, the upstream counts as gone until it answers again."""

START_RETRY_SECONDS: Final = 1.0

_PATHS: Final = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
}
_STREAM_USAGE: Final[Mapping[str, Any]] = {"stream_options": {"include_usage": True}}

_log: Final = structlog.get_logger()


def create(settings: EngineSettings) -> OpenAiEngine:
    """Entry point ``openai``.

    Raises:
        ConfigError: endpoint, key file or engine arguments cannot work.
    """
    arguments = EngineArguments("openai")
    arguments.add_argument("--context", type=integer_between(0, 1 << 24), default=0)
    arguments.add_argument("--features", type=_features, default=DEFAULT_FEATURES)
    arguments.add_argument("--ca-file", type=Path)
    arguments.add_argument("--start-seconds", type=number_between(0, 3600), default=30.0)
    arguments.add_argument("--probe-seconds", type=number_between(0.05, 3600), default=10.0)
    found = arguments.read(settings.engine_args)
    requests_max = settings.requests_max or REQUESTS_MAX_DEFAULT
    key = read_key(settings.api_key_file)
    root, base = split_endpoint(settings.endpoint)
    if root.startswith("unix:"):
        upstream: Upstream = UnixUpstream(Path(root.removeprefix("unix:")), api_key=key)
    else:
        # Half a tenth of a second to load, and only this engine needs it.
        from providers.http_client import HttpUpstream  # noqa: PLC0415

        upstream = HttpUpstream(root, requests_max=requests_max, api_key=key, ca_file=found.ca_file)
    plan = UpstreamPlan(
        base=base,
        model=settings.model,
        served_name=settings.served_name,
        context_tokens=found.context,
        features=found.features,
        start_seconds=found.start_seconds,
        probe_every_seconds=found.probe_seconds,
        secret=key,
    )
    return OpenAiEngine(plan, upstream, requests_max)


DEFAULT_FEATURES: Final = (Feature.TOOLS, Feature.JSON_SCHEMA, Feature.LOGPROBS)
"""What common servers can do; the owner corrects it by ``--features``."""


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What is asked of the upstream.

    Attributes:
        base: path of its API, such as ``/v1``.
        model: the upstream's name for it; empty takes the only one it has.
        context_tokens: 0 takes what the upstream says.
        secret: the owner's key, so that it can be kept out of messages.
    """

    base: str
    model: str
    served_name: str = ""
    context_tokens: int = 0
    features: tuple[Feature, ...] = DEFAULT_FEATURES
    start_seconds: float = 30.0
    probe_every_seconds: float = 10.0
    secret: str = field(default="", repr=False)


class OpenAiEngine:
    """See the module; the upstream is somebody else's, so it is probed but never restarted."""

    def __init__(self, plan: UpstreamPlan, upstream: Upstream, requests_max: int) -> None:
        self._plan = plan
        self._upstream = upstream
        self._admission = Admission(requests_max)
        self._model = ListedModel(plan.model)
        self._probes_failed = 0
        self._alive = False
        self._scope = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Find the model at the upstream, then probe it until cancelled.

        Raises:
            EngineStartFailed: not reachable for some time, or it has no such model.
        """
        try:
            with self._scope:
                self._model = await self._find_model(progress)
                self._alive = True
                ready()
                await self._probe_for_ever()
        finally:
            self.kill()
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await self._upstream.aclose()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        if not self._alive:
            raise EngineFailed("the engine is not running")
        if request.model != self._name:
            raise ModelNotFound(f"this engine serves {self._name}, not {request.model}")
        path = _PATHS.get(request.endpoint)
        if path is None:
            raise InvalidRequest("the openai engine serves chat and completions only")
        with self._admission.request(), self._secret_kept():
            with trio.CancelScope() as scope:
                self._requests.add(scope)
                try:
                    await ask(self._upstream, self._plan.base + path, self._body(request), sink)
                    return
                finally:
                    self._requests.discard(scope)
            raise EngineFailed("the engine was stopped")

    async def count_tokens(self, request: EngineRequest) -> int:
        """Not offered: the dialect has no call for it.

        Raises:
            EngineFailed: always.
        """
        raise EngineFailed(f"the upstream of {request.model} does not count tokens")

    def capabilities(self) -> Capabilities:
        """One model; what weights the upstream has cannot be known, so there is no digest."""
        model = ModelInfo(
            self._name,
            context_tokens=self._plan.context_tokens or self._model.context_tokens,
            endpoints=tuple(_PATHS),
            features=self._plan.features,
        )
        return Capabilities("openai", (model,), self._admission.requests_max)

    def health(self) -> Health:
        """By the last probes; OFFLINE also before `run` and after `kill`."""
        if not self._alive or self._probes_failed >= PROBES_FAILED_MAX:
            return Health.OFFLINE
        return Health.DEGRADED if self._probes_failed else Health.HEALTHY

    def load(self) -> Load:
        """Share of the places taken by this node; others may use the upstream too."""
        return self._admission.load()

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Close every request's socket; idempotent. The upstream itself goes on."""
        self._alive = False
        self._scope.cancel()
        for scope in self._requests:
            scope.cancel()

    @property
    def _name(self) -> ModelName:
        return ModelName(self._plan.served_name or self._model.name)

    def _body(self, request: EngineRequest) -> dict[str, Any]:
        body = {**request.body, "model": self._model.name, "stream": request.stream}
        if request.stream:
            body.update(_STREAM_USAGE)
        if request.salt and self._model.owner == "vllm":
            body["cache_salt"] = request.salt
        return body

    @contextlib.contextmanager
    def _secret_kept(self) -> Iterator[None]:
        """An upstream may quote the key it was sent; consumers must not read it."""
        try:
            yield
        except CodedError as error:
            if self._plan.secret and self._plan.secret in error.message:
                raise EngineFailed("the engine's upstream refuses the request") from None
            raise

    async def _find_model(self, progress: Progress) -> ListedModel:
        deadline = trio.current_time() + self._plan.start_seconds
        told = ""
        while True:
            try:
                status, answer = await self._list_models()
                break
            except EngineFailed as error:
                if trio.current_time() >= deadline:
                    raise EngineStartFailed(f"{error}; is --endpoint right?") from error
                if str(error) != told:  # once, not at every try
                    told = str(error)
                    progress(f"waiting: {told}")
                await trio.sleep(START_RETRY_SECONDS)
        if status in {404, 405} and self._plan.model:
            progress(f"the upstream lists no models; taking {self._plan.model} on trust")
            return ListedModel(self._plan.model)
        if status in {401, 403}:
            raise EngineStartFailed("the upstream refuses the key: see --api-key-file")
        if status != 200:
            raise EngineStartFailed(f"the upstream's model list answers with HTTP status {status}")
        return choose_model(self._plan.model, read_models(answer))

    async def _list_models(self) -> tuple[int, bytes]:
        path = f"{self._plan.base}/models"
        return await ask_once(self._upstream, path, timeout_seconds=PROBE_SECONDS)

    async def _probe_for_ever(self) -> None:
        while True:
            await trio.sleep(self._plan.probe_every_seconds)
            healthy = self.health()
            try:
                status, _ = await self._list_models()
            except EngineFailed:
                status = 0
            # A server that refuses the list still serves; one that fails does not.
            self._probes_failed = self._probes_failed + 1 if status == 0 or status >= 500 else 0
            if self.health() is not healthy:
                _log.warning("engine.health", engine="openai", health=self.health().text)


def _features(text: str) -> tuple[Feature, ...]:
    """Reads ``tools,vision``; argparse reports the ValueError with the flag's name."""
    return tuple(Feature(name.strip()) for name in text.split(",") if name.strip())
