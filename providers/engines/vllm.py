"""The vllm engine: vLLM's own server in a child process, over HTTP on a Unix socket.

vLLM needs a graphics card and brings gigabytes of packages, so it mostly lives in an environment of
its own (``--engine-args "--python /opt/vllm/bin/python"``); the node never imports it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import trio

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import EngineState, Health, Load, ModelInfo
from aimo_node.errors import (
    ContextLengthExceeded,
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
from providers.answers import NOT_JSON
from providers.children.supervisor import RestartPolicy, Supervisor
from providers.http.upstream import ask_once
from providers.openai.dialect import ask, ask_data, refusal
from providers.vllm.arguments import VllmPlan, has_vllm, read_plan
from providers.vllm.child import VllmChild, missing
from providers.vllm.load import METRICS_BYTES_MAX, LoadMeter, read_metrics
from providers.vllm.offer import PATHS
from providers.vllm.tool_arguments import CheckedToolCalls

SCRAPE_SECONDS: Final = 1.0
SCRAPE_TIMEOUT_SECONDS: Final = 5.0

POLICY: Final = RestartPolicy(
    delay_seconds=1.0,
    delay_seconds_max=60.0,
    # A start alone takes a minute or more; dying soon after it is still dying in a row.
    stable_seconds=900.0,
    probe_every_seconds=1.0,
    # A server busy with long prompts may be silent for a while; killing it would cost minutes.
    probes_failed_max=6,
)

_CONTEXT_WORD: Final = "max_model_len"
_STREAM_USAGE: Final[Mapping[str, Any]] = {"include_usage": True}


def create(settings: EngineSettings) -> VllmEngine:
    """Entry point ``vllm``.

    Raises:
        ConfigError: the settings cannot work.
    """
    return VllmEngine(read_plan(settings))


class VllmEngine:
    """See the module.

    Args:
        policy: when to restart the child.
    """

    def __init__(self, plan: VllmPlan, policy: RestartPolicy = POLICY) -> None:
        self.plan = plan
        self._child = VllmChild(plan)
        # Only the length of a pause hangs on it.
        chance = random.Random()  # noqa: S311 (no secret is made)
        self._supervisor = Supervisor(self._child, policy, chance)
        self._admission = Admission(plan.requests_max)
        self._meter = LoadMeter()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Keep a child alive until cancelled; `ready` after each start.

        Raises:
            EngineStartFailed: vLLM is not installed, cannot serve the model, or dies too often.
        """
        if not has_vllm(self.plan.python):
            raise EngineStartFailed(missing(self.plan.python), not_installed=True)
        self._child.ready = ready
        self._child.gone = self._meter.forget
        failure: EngineStartFailed | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._scrape_for_ever)
                failure = await self._supervise(progress)
                nursery.cancel_scope.cancel()
        finally:
            self._child.close()
        if failure is not None:  # raised outside, so that it is not wrapped in a group
            raise failure

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        model = self._check(request)
        if request.endpoint not in model.endpoints:
            raise InvalidRequest(f"{request.model} does not serve {request.endpoint.name.lower()}")
        with self._admission.request():
            path = PATHS[request.endpoint]
            body = _body(request)
            if request.endpoint is Endpoint.EMBEDDINGS:
                await ask_data(self._child.upstream, path, body, sink)
                return
            if body.get("tools"):
                sink = CheckedToolCalls(sink)
            try:
                await ask(self._child.upstream, path, body, sink)
            except InvalidRequest as error:
                if _CONTEXT_WORD in error.message:
                    raise ContextLengthExceeded(error.message, param="max_tokens") from None
                raise

    async def count_tokens(self, request: EngineRequest) -> int:
        """Tokens of the prompt, template included, by the model's own tokenizer.

        Raises:
            ModelNotFound, InvalidRequest, EngineFailed.
        """
        self._check(request)
        body = msgspec.json.encode(_tokenize_body(request))
        status, answer = await ask_once(self._child.upstream, "/tokenize", body)
        if status != 200:
            raise refusal(status, {}, answer)
        try:
            return int(msgspec.json.decode(answer, type=dict[str, Any])["count"])
        except (*NOT_JSON, KeyError, TypeError, ValueError) as error:
            raise EngineFailed("vLLM does not say how many tokens there are") from error

    def capabilities(self) -> Capabilities:
        """The model and its adapters; what they can do is known once vLLM is ready."""
        offer = self._child.offer
        models = offer.models if offer else (ModelInfo(self.plan.name),)
        version = offer.version if offer else ""
        return Capabilities("vllm", models, self.plan.requests_max, version=version)

    def health(self) -> Health:
        """As the supervisor sees the child."""
        return self._supervisor.health

    def load(self) -> Load:
        """Places taken, as many of them waiting as vLLM says; a full cache counts as no place.

        Nobody but this node sends requests to the child.
        """
        meter, admitted = self._meter, self._admission.running
        waiting = min(int(meter.reading.waiting), admitted)
        kv_used = min(1.0, max(0.0, meter.reading.kv_used)) if admitted else 0.0
        return Load(
            load=min(1.0, max(admitted / self.plan.requests_max, kv_used)),
            running=admitted - waiting,
            waiting=waiting,
            kv_used=kv_used,
            prefix_hits=meter.prefix_hits,
            first_token_seconds=meter.first_token_seconds,
        )

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Kill the child's process group and remove its sockets; idempotent."""
        self._supervisor.kill()
        self._child.down()

    async def _supervise(self, progress: Progress) -> EngineStartFailed | None:
        """Until killed, or until it cannot go on: then why."""
        try:
            await self._supervisor.run(progress)
        except EngineStartFailed as error:
            return EngineStartFailed(str(error), not_installed=self._child.lacks_vllm)
        return None

    async def _scrape_for_ever(self) -> None:
        while True:
            await trio.sleep(SCRAPE_SECONDS)
            if self._supervisor.state is EngineState.RUNNING:
                await self._scrape()

    async def _scrape(self) -> None:
        try:
            status, text = await ask_once(
                self._child.upstream, "/metrics", timeout_seconds=SCRAPE_TIMEOUT_SECONDS
            )
        except EngineFailed:
            return  # whether it is alive is the supervisor's to say
        if status == 200:
            self._meter.take(read_metrics(text[:METRICS_BYTES_MAX]))

    def _check(self, request: EngineRequest) -> ModelInfo:
        """The model a request is for."""
        offer = self._child.offer
        if self._supervisor.state is not EngineState.RUNNING or offer is None:
            raise EngineFailed("the engine is not running; it is being started again")
        for model in offer.models:
            if model.name == request.model:
                return model
        raise ModelNotFound(f"this engine serves {self.plan.name}, not {request.model}")


def _body(request: EngineRequest) -> dict[str, Any]:
    """What vLLM is asked."""
    body = {**request.body, "model": request.model}
    body.pop("aimo", None)  # for other dialects; vLLM would log a warning for each request
    if request.salt:
        body["cache_salt"] = request.salt
    if request.endpoint is Endpoint.EMBEDDINGS:
        return body
    body["stream"] = request.stream
    if request.stream:
        body["stream_options"] = _STREAM_USAGE
    else:
        body.pop("stream_options", None)
    return body | _continuation(request)


def _tokenize_body(request: EngineRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"model": request.model}
    if request.endpoint is Endpoint.CHAT:
        told = ("messages", "tools", "chat_template_kwargs")
        body |= {name: request.body[name] for name in told if name in request.body}
        return body | _continuation(request)
    prompt = request.body.get("prompt", request.body.get("input"))
    if not isinstance(prompt, str):
        raise InvalidRequest("only a prompt that is one text can be counted", param="prompt")
    return {**body, "prompt": prompt}


def _continuation(request: EngineRequest) -> dict[str, Any]:
    """An answer that has been begun is gone on with, not answered by another one."""
    messages = request.body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if request.endpoint is not Endpoint.CHAT or not isinstance(last, dict):
        return {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}
