"""The anthropic engine: a Messages API upstream, Anthropic's own or one that speaks it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.client import MessagesApi
from providers.anthropic.dialect import API_VERSION, NO_SAMPLING_SINCE
from providers.anthropic.request import Rules, Translation, translate
from providers.arguments import EngineArguments, integer_between, number_between
from providers.discretion import Discretion
from providers.endpoints import read_key, split_endpoint
from providers.model_list import ListedModel
from providers.model_offer import EVERY_MODEL, Offer, Wish, described, first_offer, next_offer
from providers.rate_limits import RateLimits
from providers.unix_client import UnixUpstream
from providers.upstream import Upstream
from providers.upstream_start import wait_for_upstream

ENDPOINT_DEFAULT: Final = "https://api.anthropic.com"
REQUESTS_MAX_DEFAULT: Final = 64
PROBES_FAILED_MAX: Final = 6
"""After three minutes of silence, by default, the API counts as gone until it answers again."""

_SAMPLING: Final[Mapping[str, bool | None]] = {"auto": None, "send": True, "drop": False}
_NO_LIST: Final = frozenset({404, 405})
_NO_ACCESS: Final = frozenset({401, 403})
_NOT_YET: Final = frozenset({429, 500, 502, 503, 504, 529})

_log: Final = structlog.get_logger()


def create(settings: EngineSettings) -> AnthropicEngine:
    """Entry point ``anthropic``.

    Raises:
        ConfigError: endpoint, key, names or engine arguments cannot work.
    """
    found = _arguments(settings.engine_args)
    if settings.served_name and settings.model == EVERY_MODEL:
        raise ConfigError("--served-name names one model, --model '*' takes all: use --models")
    requests_max = settings.requests_max or REQUESTS_MAX_DEFAULT
    key = read_key(settings.api_key_file, settings.api_key_env)
    endpoint = settings.endpoint or ENDPOINT_DEFAULT
    root, base = split_endpoint(endpoint)
    if root.startswith("unix:"):
        upstream: Upstream = UnixUpstream(Path(root.removeprefix("unix:")))
    else:
        # Half a tenth of a second to load, and only engines with an upstream elsewhere need it.
        from providers.http_client import HttpUpstream  # noqa: PLC0415

        upstream = HttpUpstream(root, requests_max=requests_max, ca_file=found.ca_file)
    headers = [("anthropic-version", found.api_version)]
    headers += [("anthropic-beta", found.beta)] if found.beta else []
    headers += [("x-api-key", key)] if key else []
    sampling = _SAMPLING[found.sampling]
    if sampling is None and found.api_version >= NO_SAMPLING_SINCE:
        sampling = False
    plan = MessagesPlan(
        endpoint=endpoint,
        wish=Wish(
            models=dict(settings.models),
            model=settings.model,
            served_name=settings.served_name,
            endpoints=(Endpoint.CHAT,),
            features=found.features,
            context_tokens=found.context,
        ),
        rules=Rules(found.max_tokens, found.system_in_place, sampling),
        start_seconds=found.start_seconds,
        probe_every_seconds=found.probe_seconds,
        secret=key,
    )
    return AnthropicEngine(plan, MessagesApi(upstream, base, headers), requests_max)


@dataclass(frozen=True, slots=True)
class MessagesPlan:
    """What is asked of the API.

    Attributes:
        endpoint: as the owner gave it, for messages.
        secret: the owner's key, so that it can be kept out of messages.
    """

    endpoint: str
    wish: Wish
    rules: Rules
    start_seconds: float = 30.0
    probe_every_seconds: float = 30.0
    secret: str = field(default="", repr=False)


class AnthropicEngine:
    """See the module; the API is somebody else's, so it is probed but never restarted."""

    def __init__(self, plan: MessagesPlan, api: MessagesApi, requests_max: int) -> None:
        self._plan = plan
        self._api = api
        self._admission = Admission(requests_max)
        self._facts: dict[str, ModelFacts] = {}
        self._offer: Offer = {}
        self._models: tuple[ModelInfo, ...] = ()
        self._limits: dict[str, RateLimits] = {}
        """By the API's name of a model: it limits each apart."""
        self._told: set[str] = set()
        self._probes_failed = 0
        self._alive = False
        self._scope = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Find the models at the API, then probe it until cancelled.

        `ready` is called again whenever the API's list changes what is offered.

        Raises:
            EngineStartFailed: not reachable for some time, no access, or it has no such model.
        """
        try:
            with self._scope:
                listed = await self._find_models(progress)
                self._take(listed, first_offer(self._plan.wish, _as_listed(listed)))
                self._alive = True
                ready()
                await self._probe_for_ever(ready)
        finally:
            self.kill()
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await self._api.upstream.aclose()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        model = self._model_of(request)
        limits = self._limits.setdefault(model.name, RateLimits())

        def heed(status: int, headers: Mapping[str, str]) -> None:
            limits.note(status, headers, trio.current_time(), _epoch_seconds())

        with self._admission.request(), self._discretion(request, model):
            _check_open(limits)
            translation = self._translate(request, model)
            with trio.CancelScope() as scope:
                self._requests.add(scope)
                try:
                    await self._api.ask(translation.body, sink, heed, stream=request.stream)
                    return
                finally:
                    self._requests.discard(scope)
            raise EngineFailed("the engine was stopped")

    async def count_tokens(self, request: EngineRequest) -> int:
        """See `Engine.count_tokens`; the API counts by the model's own tokenizer."""
        model = self._model_of(request)
        with self._discretion(request, model):
            return await self._api.count_tokens(self._translate(request, model).body)

    def capabilities(self) -> Capabilities:
        """What the API listed last, as far as it is wanted."""
        return Capabilities("anthropic", self._models, self._admission.requests_max)

    def health(self) -> Health:
        """By the last probes; OFFLINE also before `run` and after `kill`."""
        if not self._alive or self._probes_failed >= PROBES_FAILED_MAX:
            return Health.OFFLINE
        return Health.DEGRADED if self._probes_failed else Health.HEALTHY

    def load(self) -> Load:
        """Share of the places taken by this node, or of the API's tightest rate limit."""
        own = self._admission.load()
        now = trio.current_time()
        limited = max((limits.share(now) for limits in self._limits.values()), default=0.0)
        return replace(own, load=max(own.load, limited))

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Close every request's socket; idempotent. The API itself goes on."""
        self._alive = False
        self._scope.cancel()
        for scope in self._requests:
            scope.cancel()

    def _model_of(self, request: EngineRequest) -> ListedModel:
        if not self._alive:
            raise EngineFailed("the engine is not running")
        model = self._offer.get(request.model)
        if model is None:
            raise ModelNotFound(f"this engine does not serve {request.model}")
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest(f"{request.model} serves chat only", param="model")
        return model

    def _discretion(self, request: EngineRequest, model: ListedModel) -> Discretion:
        return Discretion(self._plan.secret, {model.name: request.model})

    def _translate(self, request: EngineRequest, model: ListedModel) -> Translation:
        facts = self._facts.get(model.name) or ModelFacts(model.name)
        translation = translate(request.body, facts, self._plan.rules)
        untold = set(translation.left_out) - self._told
        if untold:
            self._told |= untold  # names of fields, of which there are few
            _log.debug("request.left_out", engine="anthropic", fields=sorted(untold))
        return translation

    async def _find_models(self, progress: Progress) -> list[ModelFacts]:
        plan = self._plan
        status, listed = await wait_for_upstream(
            self._list_models, plan.endpoint, plan.start_seconds, progress
        )
        if status in _NO_LIST and plan.wish.names:
            names = ", ".join(plan.wish.names)
            progress(f"the API lists no models; taking {names} on trust")
            return [ModelFacts(name) for name in plan.wish.names]
        if status in _NO_ACCESS:
            what = "refuses the key" if plan.secret else "wants a key"
            raise EngineStartFailed(f"the API {what}: see --api-key-file and --api-key-env")
        if status != 200:
            raise EngineStartFailed(f"the API's model list answers with HTTP status {status}")
        return listed

    async def _list_models(self) -> tuple[int, list[ModelFacts]]:
        status, listed = await self._api.list_models()
        if status in _NOT_YET:
            raise EngineFailed(f"the model list answers with HTTP status {status}")
        return status, listed

    async def _probe_for_ever(self, ready: Callable[[], None]) -> None:
        while True:
            await trio.sleep(self._plan.probe_every_seconds)
            healthy = self.health()
            try:
                status, listed = await self._api.list_models()
            except (EngineFailed, EngineStartFailed):
                status, listed = 0, []
            # Without access no request will succeed either; too many probes prove nothing.
            failed = status == 0 or status >= 500 or status in _NO_ACCESS
            self._probes_failed = self._probes_failed + 1 if failed else 0
            if self.health() is not healthy:
                _log.warning("engine.health", engine="anthropic", health=self.health().text)
            if status == 200 and listed:
                self._refresh(listed, ready)

    def _refresh(self, listed: Sequence[ModelFacts], ready: Callable[[], None]) -> None:
        before = self._models
        self._take(listed, next_offer(self._plan.wish, _as_listed(listed), self._offer))
        if self._models != before:
            names = [model.name for model in self._models]
            _log.info("engine.models", engine="anthropic", models=names)
            ready()

    def _take(self, listed: Sequence[ModelFacts], offer: Offer) -> None:
        self._offer = offer
        self._models = described(self._plan.wish, offer)
        own = {model.name for model in offer.values()}
        self._facts = {facts.name: facts for facts in listed if facts.name in own}
        self._limits = {name: limits for name, limits in self._limits.items() if name in own}


def _as_listed(facts: Sequence[ModelFacts]) -> list[ListedModel]:
    """What deciding about an offer needs; only what the API affirms is claimed."""
    return [
        ListedModel(
            one.name,
            context_tokens=one.context_tokens,
            features=(Feature.VISION,) if one.images else (),
            lacks=(Feature.LOGPROBS,) if one.schemas else (Feature.LOGPROBS, Feature.JSON_SCHEMA),
        )
        for one in facts
    ]


def _epoch_seconds() -> float:
    """The API gives dates at which its limits are full again."""
    return datetime.now(UTC).timestamp()


def _check_open(limits: RateLimits) -> None:
    """Refuse what the API would refuse.

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


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    arguments = EngineArguments("anthropic")
    arguments.add_argument("--context", type=integer_between(0, 1 << 24), default=0)
    arguments.add_argument("--max-tokens", type=integer_between(0, 1 << 20), default=0)
    arguments.add_argument("--features", type=_features)
    arguments.add_argument("--sampling", choices=tuple(_SAMPLING), default="auto")
    arguments.add_argument("--system-in-place", action="store_true")
    arguments.add_argument("--api-version", type=_header(r"\d{4}-\d\d-\d\d"), default=API_VERSION)
    arguments.add_argument("--beta", type=_header(r"[\w,.-]{1,256}"))
    arguments.add_argument("--ca-file", type=Path)
    arguments.add_argument("--start-seconds", type=number_between(0, 3600), default=30.0)
    arguments.add_argument("--probe-seconds", type=number_between(0.05, 3600), default=30.0)
    return arguments.read(given)


def _header(form: str) -> Callable[[str], str]:
    """A reader of what goes into a header."""

    def read(text: str) -> str:
        if not re.fullmatch(form, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return read


def _features(text: str) -> tuple[Feature, ...]:
    """Reads ``tools,vision``; argparse reports the ValueError with the flag's name."""
    return tuple(Feature(name.strip()) for name in text.split(",") if name.strip())
