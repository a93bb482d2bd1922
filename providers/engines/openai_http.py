"""The openai engine: any OpenAI-compatible server that already runs, by URL or Unix socket."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature, Health, Load, ModelInfo
from aimo_node.errors import (
    ConfigError,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
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
from providers.discretion import Discretion
from providers.endpoints import read_key, split_endpoint
from providers.model_list import ListedModel, read_models
from providers.model_offer import (
    EVERY_MODEL,
    Offer,
    Wish,
    described,
    endpoints_of,
    first_offer,
    next_offer,
    on_trust,
)
from providers.openai_dialect import ask, ask_data
from providers.rate_limits import RateLimits
from providers.unix_client import UnixUpstream
from providers.upstream import Upstream, ask_once, wall_clock
from providers.upstream_start import wait_for_upstream

REQUESTS_MAX_DEFAULT: Final = 64
PROBE_SECONDS: Final = 5.0
PROBES_FAILED_MAX: Final = 6
"""After a minute of silence, by default, the upstream counts as gone until it answers again."""

_PATHS: Final = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
    Endpoint.IMAGES: "/images/generations",
}
_TALK: Final = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
_STREAM_USAGE: Final[Mapping[str, Any]] = {"stream_options": {"include_usage": True}}
_NO_LIST: Final = frozenset({404, 405})
_NOT_YET: Final = frozenset({429, 502, 503, 504})
"""What servers, and proxies before them, answer while they load or are busy."""

_log: Final = structlog.get_logger()


def create(settings: EngineSettings) -> OpenAiEngine:
    """Entry point ``openai``.

    Raises:
        ConfigError: endpoint, key, names or engine arguments cannot work.
    """
    arguments = EngineArguments("openai")
    arguments.add_argument("--context", type=integer_between(0, 1 << 24), default=0)
    arguments.add_argument("--endpoints", type=_endpoints)
    arguments.add_argument("--features", type=_features)
    arguments.add_argument("--ca-file", type=Path)
    arguments.add_argument("--start-seconds", type=number_between(0, 3600), default=30.0)
    arguments.add_argument("--probe-seconds", type=number_between(0.05, 3600), default=10.0)
    found = arguments.read(settings.engine_args)
    if settings.served_name and settings.model == EVERY_MODEL:
        raise ConfigError("--served-name names one model, --model '*' takes all: use --models")
    requests_max = settings.requests_max or REQUESTS_MAX_DEFAULT
    key = read_key(settings.api_key_file, settings.api_key_env)
    root, base = split_endpoint(settings.endpoint)
    if root.startswith("unix:"):
        upstream: Upstream = UnixUpstream(Path(root.removeprefix("unix:")), api_key=key)
    else:
        # Half a tenth of a second to load, and only engines with an upstream elsewhere need it.
        from providers.http_client import HttpUpstream  # noqa: PLC0415

        upstream = HttpUpstream(root, requests_max=requests_max, api_key=key, ca_file=found.ca_file)
    plan = UpstreamPlan(
        endpoint=settings.endpoint,
        base=base,
        wish=Wish(
            models=dict(settings.models),
            model=settings.model,
            served_name=settings.served_name,
            endpoints=found.endpoints,
            features=found.features,
            context_tokens=found.context,
        ),
        start_seconds=found.start_seconds,
        probe_every_seconds=found.probe_seconds,
        secret=key,
    )
    return OpenAiEngine(plan, upstream, requests_max)


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What is asked of the upstream.

    Attributes:
        endpoint: as the owner gave it, for messages.
        base: path of its API, such as ``/v1``.
        secret: the owner's key, so that it can be kept out of messages.
    """

    endpoint: str
    base: str
    wish: Wish
    start_seconds: float = 30.0
    probe_every_seconds: float = 10.0
    secret: str = field(default="", repr=False)


class OpenAiEngine:
    """See the module; the upstream is somebody else's, so it is probed but never restarted."""

    def __init__(self, plan: UpstreamPlan, upstream: Upstream, requests_max: int) -> None:
        self._plan = plan
        self._upstream = upstream
        self._admission = Admission(requests_max)
        self._offer: Offer = on_trust(plan.wish)
        self._models: tuple[ModelInfo, ...] = described(plan.wish, self._offer)
        self._limits: dict[str, RateLimits] = {}
        """By the upstream's name of a model: services limit each model apart."""
        self._probes_failed = 0
        self._alive = False
        self._scope = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Find the models at the upstream, then probe it until cancelled.

        `ready` is called again whenever the upstream's list changes what is offered.

        Raises:
            EngineStartFailed: not reachable for some time, or it has no such model.
        """
        try:
            with self._scope:
                self._take(await self._find_models(progress))
                self._alive = True
                ready()
                await self._probe_for_ever(ready)
        finally:
            self.kill()
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await self._upstream.aclose()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        if not self._alive:
            raise EngineFailed("the engine is not running")
        model = self._offer.get(request.model)
        if model is None:
            raise ModelNotFound(f"this engine does not serve {request.model}")
        limits = self._limits.setdefault(model.name, RateLimits())
        with self._admission.request(), self._discretion(request, model):
            _check_open(limits)
            with trio.CancelScope() as scope:
                self._requests.add(scope)
                try:
                    await self._ask(request, model, limits, sink)
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
        """What the upstream listed last, as far as it is wanted."""
        return Capabilities("openai", self._models, self._admission.requests_max)

    def health(self) -> Health:
        """By the last probes; OFFLINE also before `run` and after `kill`."""
        if not self._alive or self._probes_failed >= PROBES_FAILED_MAX:
            return Health.OFFLINE
        return Health.DEGRADED if self._probes_failed else Health.HEALTHY

    def load(self) -> Load:
        """Share of the places taken by this node, or of the upstream's tightest rate limit."""
        own = self._admission.load()
        now = trio.current_time()
        limited = max((limits.share(now) for limits in self._limits.values()), default=0.0)
        return replace(own, load=max(own.load, limited))

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Close every request's socket; idempotent. The upstream itself goes on."""
        self._alive = False
        self._scope.cancel()
        for scope in self._requests:
            scope.cancel()

    async def _ask(
        self, request: EngineRequest, model: ListedModel, limits: RateLimits, sink: AnswerSink
    ) -> None:
        if request.endpoint not in endpoints_of(self._plan.wish, model):
            what = request.endpoint.name.lower()
            raise InvalidRequest(f"{request.model} does not serve {what} here", param="model")

        def heed(status: int, headers: Mapping[str, str]) -> None:
            limits.note(status, headers, trio.current_time(), wall_clock())

        path = self._plan.base + _PATHS[request.endpoint]
        body = {**request.body, "model": model.name}
        body.pop("aimo", None)  # what other dialects need; strict servers refuse what they lack
        if request.endpoint in _TALK:
            body["stream"] = request.stream
            if request.stream:
                body.update(_STREAM_USAGE)
            if request.salt and model.owner == "vllm":
                body["cache_salt"] = request.salt
            await ask(self._upstream, path, body, sink, heed=heed)
        elif request.stream:
            raise InvalidRequest("only text can be streamed", param="stream")
        else:
            await ask_data(self._upstream, path, body, sink, heed=heed)

    def _discretion(self, request: EngineRequest, model: ListedModel) -> Discretion:
        return Discretion(self._plan.secret, {model.name: request.model})

    async def _find_models(self, progress: Progress) -> Offer:
        plan, wish = self._plan, self._plan.wish
        status, answer = await wait_for_upstream(
            self._list_models, plan.endpoint, plan.start_seconds, progress
        )
        if status in _NO_LIST and wish.names:
            names = ", ".join(wish.names)
            progress(f"the upstream lists no models; taking {names} on trust")
            return on_trust(wish)
        if status in {401, 403}:
            what = "refuses the key" if plan.secret else "wants a key"
            raise EngineStartFailed(f"the upstream {what}: see --api-key-file and --api-key-env")
        if status != 200:
            raise EngineStartFailed(f"the upstream's model list answers with HTTP status {status}")
        listed = read_models(answer)
        offer = first_offer(wish, listed)
        self._tell_left_out(listed, offer)
        return offer

    async def _list_models(self) -> tuple[int, bytes]:
        path = f"{self._plan.base}/models"
        status, answer = await ask_once(self._upstream, path, timeout_seconds=PROBE_SECONDS)
        if status in _NOT_YET:
            raise EngineFailed(f"the model list answers with HTTP status {status}")
        return status, answer

    async def _probe_for_ever(self, ready: Callable[[], None]) -> None:
        while True:
            await trio.sleep(self._plan.probe_every_seconds)
            healthy = self.health()
            try:
                status, answer = await self._list_models()
            except EngineFailed:
                status, answer = 0, b""
            # A server that refuses the list still serves; one that fails does not.
            self._probes_failed = self._probes_failed + 1 if status == 0 or status >= 500 else 0
            if self.health() is not healthy:
                _log.warning("engine.health", engine="openai", health=self.health().text)
            if status == 200:
                self._refresh(answer, ready)

    def _refresh(self, answer: bytes, ready: Callable[[], None]) -> None:
        """Offer what a later list has; a list that cannot be read changes nothing."""
        try:
            listed = read_models(answer)
        except EngineStartFailed:
            return
        before = self._offer
        offer = next_offer(self._plan.wish, listed, before)
        if offer == before:
            return
        _log.info(
            "engine.models",
            engine="openai",
            come=sorted(offer.keys() - before.keys()),
            gone=sorted(before.keys() - offer.keys()),
        )
        self._tell_left_out(listed, offer)
        self._take(offer)
        ready()

    def _take(self, offer: Offer) -> None:
        self._offer = offer
        self._models = described(self._plan.wish, offer)
        own = {model.name for model in offer.values()}
        self._limits = {name: limits for name, limits in self._limits.items() if name in own}

    def _tell_left_out(self, listed: list[ListedModel], offer: Offer) -> None:
        if self._plan.wish.model == EVERY_MODEL and len(offer) < len(listed):
            _log.warning(
                "engine.models_left_out",
                engine="openai",
                offered=len(offer),
                listed=len(listed),
                fix="name the ones you want with --models",
            )


def _check_open(limits: RateLimits) -> None:
    """Refuse what the upstream would refuse.

    Raises:
        Overloaded: nothing is left of its rate limit for a while.
    """
    seconds = limits.closed_seconds(trio.current_time())
    if seconds:
        raise Overloaded(
            "the rate limit of the engine's upstream is used up",
            # A moment too early would be refused again.
            retry_after_seconds=math.ceil(seconds * 10) / 10,
        )


def _features(text: str) -> tuple[Feature, ...]:
    """Reads ``tools,vision``; argparse reports the ValueError with the flag's name."""
    return tuple(Feature(name.strip()) for name in text.split(",") if name.strip())


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    """Reads ``chat,embeddings``."""
    known = {endpoint.name.lower(): endpoint for endpoint in _PATHS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(known)}")
    return tuple(known[name] for name in names)
