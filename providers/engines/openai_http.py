"""The openai engine: any OpenAI-compatible server that already runs, by URL or Unix socket."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from aimo_node.domain.ids import Endpoint
from aimo_node.errors import InvalidRequest
from aimo_node.ports.engine import AnswerSink, EngineRequest, EngineSettings
from providers.http.upstream import Heed, Upstream, ask_once
from providers.openai.dialect import ask, ask_data
from providers.upstreams.endpoints import read_key, split_endpoint
from providers.upstreams.listing_engine import ListingEngine, UpstreamPlan
from providers.upstreams.model_list import ListedModel, read_models
from providers.upstreams.model_offer import endpoints_of
from providers.upstreams.settings import connect_to, upstream_arguments, upstream_plan

REQUESTS_MAX_DEFAULT: Final = 64
LIST_SECONDS: Final = 5.0
PROBE_EVERY_SECONDS: Final = 10.0

_PATHS: Final = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
    Endpoint.IMAGES: "/images/generations",
}
_TALK: Final = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
_STREAM_USAGE: Final[Mapping[str, Any]] = {"stream_options": {"include_usage": True}}


def create(settings: EngineSettings) -> OpenAiEngine:
    """Entry point ``openai``.

    Raises:
        ConfigError: endpoint, key, names or engine arguments cannot work.
    """
    arguments = upstream_arguments("openai", probe_seconds=PROBE_EVERY_SECONDS)
    arguments.add_argument("--endpoints", type=_endpoints)
    found = arguments.read(settings.engine_args)
    key = read_key(settings.api_key_file, settings.api_key_env)
    plan = upstream_plan(
        settings, found, endpoint=settings.endpoint, secret=key, endpoints=found.endpoints
    )
    requests_max = settings.requests_max or REQUESTS_MAX_DEFAULT
    root, base = split_endpoint(settings.endpoint)
    upstream = connect_to(root, requests_max=requests_max, api_key=key, ca_file=found.ca_file)
    return OpenAiEngine(plan, upstream, base, requests_max)


class OpenAiEngine(ListingEngine):
    """See the module.

    Args:
        base: path of the upstream's API, such as ``/v1``.
    """

    name = "openai"
    # What servers, and proxies before them, answer while they load or are busy.
    not_yet = frozenset({429, 502, 503, 504})
    unwell = frozenset({429})
    # A server that refuses the list still serves.
    unwell_without_list = False

    def __init__(
        self, plan: UpstreamPlan, upstream: Upstream, base: str, requests_max: int
    ) -> None:
        super().__init__(plan, requests_max)
        self._upstream = upstream
        self._base = base

    async def _list(self) -> tuple[int, list[ListedModel]]:
        path = f"{self._base}/models"
        status, answer = await ask_once(self._upstream, path, timeout_seconds=LIST_SECONDS)
        return status, read_models(answer) if status == 200 else []

    async def _ask(
        self, request: EngineRequest, model: ListedModel, sink: AnswerSink, heed: Heed
    ) -> None:
        if request.endpoint not in endpoints_of(self._plan.wish, model):
            what = request.endpoint.name.lower()
            raise InvalidRequest(f"{request.model} does not serve {what} here", param="model")
        path = self._base + _PATHS[request.endpoint]
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

    async def _aclose(self) -> None:
        await self._upstream.aclose()


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    """Reads ``chat,embeddings``."""
    known = {endpoint.name.lower(): endpoint for endpoint in _PATHS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(known)}")
    return tuple(known[name] for name in names)
