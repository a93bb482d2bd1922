"""The anthropic engine: a Messages API upstream, Anthropic's own or one that speaks it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import InvalidRequest
from aimo_node.ports.engine import AnswerSink, EngineRequest, EngineSettings
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.client import MessagesApi
from providers.anthropic.dialect import API_VERSION, NO_SAMPLING_SINCE
from providers.anthropic.request import Rules, Translation, translate
from providers.arguments import integer_between
from providers.http.upstream import Heed
from providers.upstreams.endpoints import read_key, split_endpoint
from providers.upstreams.listing_engine import NO_ACCESS, ListingEngine, UpstreamPlan
from providers.upstreams.model_list import ListedModel
from providers.upstreams.settings import connect_to, upstream_arguments, upstream_plan

ENDPOINT_DEFAULT: Final = "https://api.anthropic.com"
REQUESTS_MAX_DEFAULT: Final = 64
PROBE_EVERY_SECONDS: Final = 30.0

_SAMPLING: Final[Mapping[str, bool | None]] = {"auto": None, "send": True, "drop": False}

_log: Final = structlog.get_logger()


def create(settings: EngineSettings) -> AnthropicEngine:
    """Entry point ``anthropic``.

    Raises:
        ConfigError: endpoint, key, names or engine arguments cannot work.
    """
    found = _arguments(settings.engine_args)
    key = read_key(settings.api_key_file, settings.api_key_env)
    endpoint = settings.endpoint or ENDPOINT_DEFAULT
    plan = upstream_plan(settings, found, endpoint=endpoint, secret=key, endpoints=(Endpoint.CHAT,))
    requests_max = settings.requests_max or REQUESTS_MAX_DEFAULT
    root, base = split_endpoint(endpoint)
    upstream = connect_to(root, requests_max=requests_max, ca_file=found.ca_file)
    headers = [("anthropic-version", found.api_version)]
    headers += [("anthropic-beta", found.beta)] if found.beta else []
    headers += [("x-api-key", key)] if key else []
    sampling = _SAMPLING[found.sampling]
    if sampling is None and found.api_version >= NO_SAMPLING_SINCE:
        sampling = False
    rules = Rules(found.max_tokens, found.system_in_place, sampling)
    return AnthropicEngine(plan, MessagesApi(upstream, base, headers), rules, requests_max)


class AnthropicEngine(ListingEngine):
    """See the module."""

    name = "anthropic"
    not_yet = frozenset({429, 500, 502, 503, 504, 529})
    # Without access no request will succeed either; too many probes prove nothing.
    unwell = NO_ACCESS
    unwell_without_list = True

    def __init__(
        self, plan: UpstreamPlan, api: MessagesApi, rules: Rules, requests_max: int
    ) -> None:
        super().__init__(plan, requests_max)
        self._api = api
        self._rules = rules
        self._facts: dict[str, ModelFacts] = {}
        self._told: set[str] = set()

    async def count_tokens(self, request: EngineRequest) -> int:
        """See `Engine.count_tokens`; the API counts by the model's own tokenizer."""
        model = self._model_of(request)
        with self._discretion(request, model):
            return await self._api.count_tokens(self._translate(request, model).body)

    async def _list(self) -> tuple[int, list[ListedModel]]:
        status, listed = await self._api.list_models()
        if listed:
            self._facts = {facts.name: facts for facts in listed}
        return status, [_as_listed(facts) for facts in listed]

    async def _ask(
        self, request: EngineRequest, model: ListedModel, sink: AnswerSink, heed: Heed
    ) -> None:
        body = self._translate(request, model).body
        await self._api.ask(body, sink, heed, stream=request.stream)

    async def _aclose(self) -> None:
        await self._api.upstream.aclose()

    def _refresh(self, listed: Sequence[ListedModel]) -> bool:
        return bool(listed) and super()._refresh(listed)

    def _unlisted(self, name: str) -> ListedModel:
        return _as_listed(ModelFacts(name))

    def _model_of(self, request: EngineRequest) -> ListedModel:
        model = super()._model_of(request)
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest(f"{request.model} serves chat only", param="model")
        return model

    def _translate(self, request: EngineRequest, model: ListedModel) -> Translation:
        facts = self._facts.get(model.name) or ModelFacts(model.name)
        translation = translate(request.body, facts, self._rules)
        untold = set(translation.left_out) - self._told
        if untold:
            self._told |= untold  # names of fields, of which there are few
            _log.debug("request.left_out", engine=self.name, fields=sorted(untold))
        return translation


def _as_listed(facts: ModelFacts) -> ListedModel:
    """What deciding about an offer needs; only what the API affirms is claimed."""
    return ListedModel(
        facts.name,
        context_tokens=facts.context_tokens,
        features=(Feature.VISION,) if facts.images else (),
        lacks=(Feature.LOGPROBS,) if facts.schemas else (Feature.LOGPROBS, Feature.JSON_SCHEMA),
    )


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    arguments = upstream_arguments("anthropic", probe_seconds=PROBE_EVERY_SECONDS)
    arguments.add_argument("--max-tokens", type=integer_between(0, 1 << 20), default=0)
    arguments.add_argument("--sampling", choices=tuple(_SAMPLING), default="auto")
    arguments.add_argument("--system-in-place", action="store_true")
    arguments.add_argument("--api-version", type=_header(r"\d{4}-\d\d-\d\d"), default=API_VERSION)
    arguments.add_argument("--beta", type=_header(r"[\w,.-]{1,256}"))
    return arguments.read(given)


def _header(form: str) -> Callable[[str], str]:
    """A reader of what goes into a header."""

    def read(text: str) -> str:
        if not re.fullmatch(form, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return read
