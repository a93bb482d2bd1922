"""The llama engine: llama.cpp (xllamacpp) in a child process, over HTTP on a Unix socket.

A crash of native code ends the child, never the node; the supervisor starts it again. Answers are
always streamed from the child, since llama.cpp goes on generating a whole answer for nobody.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import EngineState, Feature, Health, Load, ModelInfo
from aimo_node.errors import ConfigError, EngineFailed, InvalidRequest, ModelNotFound
from aimo_node.ports.engine import (
    AnswerSink,
    Capabilities,
    EngineRequest,
    EngineSettings,
    Progress,
)
from providers.admission import Admission
from providers.answers import NOT_JSON
from providers.arguments import EngineArguments, integer_between
from providers.llama_child import REQUESTS_MAX_DEFAULT, LlamaChild, LlamaPlan
from providers.openai_dialect import ask, refusal
from providers.openai_whole import WholeAnswer
from providers.supervisor import RestartPolicy, Supervisor
from providers.upstream import ask_once
from providers.weights import read_head, weights_digest

DEMO_MODEL: Final = "tiny"
CONTEXT_TOKENS_DEFAULT: Final = 8192
"""Of one request; the key-value cache of a common 8B model then takes one gigabyte per slot."""

SMALL_MODEL_BYTES: Final = 64 << 20
"""Below this, threads cost more in waiting for each other than they compute."""


def create(settings: EngineSettings) -> LlamaEngine:
    """Entry point ``llama``.

    Raises:
        ConfigError: no such file, unknown engine arguments, or xllamacpp is not installed.
    """
    arguments = EngineArguments("llama")
    arguments.add_argument("--threads", type=integer_between(1, 256), default=0)
    arguments.add_argument("--context", type=integer_between(128, 1 << 24), default=0)
    arguments.add_argument("--gpu-layers", type=integer_between(-1, 1000), default=-1)
    found = arguments.read(settings.engine_args)
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError("the llama engine needs xllamacpp: pip install xllamacpp")
    path = _weights_path(settings.model)
    name = DEMO_MODEL if settings.model in {"", DEMO_MODEL} else path.stem
    plan = LlamaPlan(
        weights=path,
        name=ModelName(settings.served_name or name),
        state_folder=settings.state_folder.absolute(),
        slots=settings.requests_max or REQUESTS_MAX_DEFAULT,
        context_tokens=found.context,
        threads=found.threads or _threads_for(path),
        gpu_layers=found.gpu_layers,
    )
    return LlamaEngine(plan)


class LlamaEngine:
    """See the module.

    Args:
        policy: when to restart the child.
    """

    def __init__(self, plan: LlamaPlan, policy: RestartPolicy | None = None) -> None:
        self.plan = plan
        self._child = LlamaChild(plan)
        # Only the length of a pause hangs on it.
        chance = random.Random()  # noqa: S311 (no secret is made)
        self._supervisor = Supervisor(self._child, policy or RestartPolicy(), chance)
        self._admission = Admission(plan.slots)

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Read the weights, then keep a child alive until cancelled; `ready` after each start.

        Raises:
            EngineStartFailed: the weights cannot be used, or the child does not start.
        """
        self.plan = await self._measure(progress)
        self._child.plan = self.plan
        self._child.ready = ready
        try:
            await self._supervisor.run(progress)
        finally:
            self._child.close()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        self._check(request)
        with self._admission.request():
            self._check_running()
            if not request.stream:
                sink = WholeAnswer(sink)
            with self._child.slots.take(request.salt) as slot:
                if request.body.get("n", 1) == 1:
                    place = {"id_slot": slot.number, "cache_prompt": slot.reuse}
                    await self._ask(request, place, sink)
                    return
                # llama.cpp chooses slots for the other answers by itself.
                self._child.slots.forget()
                try:
                    await self._ask(request, {"cache_prompt": False}, sink)
                finally:
                    self._child.slots.forget()

    async def count_tokens(self, request: EngineRequest) -> int:
        """Tokens of the prompt, template included, by the model's own tokenizer.

        Raises:
            ModelNotFound, InvalidRequest, EngineFailed.
        """
        self._check(request)
        self._check_running()
        status, answer = await ask_once(
            self._child.upstream,
            "/v1/chat/completions/input_tokens",
            msgspec.json.encode(request.body),
        )
        if status != 200:
            raise refusal(status, {}, answer)
        try:
            return int(msgspec.json.decode(answer, type=dict[str, Any])["input_tokens"])
        except (*NOT_JSON, KeyError, TypeError, ValueError) as error:
            raise EngineFailed("llama.cpp does not say how many tokens there are") from error

    def capabilities(self) -> Capabilities:
        """One model; context and digest are known once it is ready."""
        model = ModelInfo(
            self.plan.name,
            context_tokens=self.plan.context_tokens,
            digest=self.plan.digest,
            endpoints=(Endpoint.CHAT,),
            features=(Feature.TOOLS, Feature.JSON_SCHEMA, Feature.LOGPROBS, Feature.CONTINUE),
        )
        return Capabilities("llama", (model,), self.plan.slots, version=_version())

    def health(self) -> Health:
        """As the supervisor sees the child."""
        return self._supervisor.health

    def load(self) -> Load:
        """Share of the slots taken; nobody but this node sends requests to the child."""
        return self._admission.load()

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Kill the child's process group and remove its socket; idempotent."""
        self._supervisor.kill()
        self._child.down()

    async def _measure(self, progress: Progress) -> LlamaPlan:
        """Complete the plan with what the weights say."""
        plan = self.plan
        head = await trio.to_thread.run_sync(read_head, plan.weights)
        own = head.context_tokens or CONTEXT_TOKENS_DEFAULT
        progress(f"checking the weights of {plan.name}")
        digest = await trio.to_thread.run_sync(
            weights_digest,
            plan.weights,
            plan.state_folder / "digests.json",
            abandon_on_cancel=True,  # type: ignore[call-arg, unused-ignore] # stubs of older trio
        )
        wanted = plan.context_tokens or CONTEXT_TOKENS_DEFAULT
        return replace(plan, context_tokens=min(own, wanted), digest=digest)

    async def _ask(
        self, request: EngineRequest, place: Mapping[str, Any], sink: AnswerSink
    ) -> None:
        body = {**request.body, **_STREAMED, **place, "model": self.plan.name}
        await ask(self._child.upstream, "/v1/chat/completions", body, sink)

    def _check(self, request: EngineRequest) -> None:
        if request.model != self.plan.name:
            raise ModelNotFound(f"this engine serves {self.plan.name}, not {request.model}")
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest("the llama engine serves chat only")

    def _check_running(self) -> None:
        if self._supervisor.state is not EngineState.RUNNING:
            raise EngineFailed("the engine is not running; it is being started again")


_STREAMED: Final[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}


def _weights_path(model: str) -> Path:
    if model in {"", DEMO_MODEL}:
        from providers.demo_model import gguf_path  # noqa: PLC0415 (only who uses it loads it)

        return gguf_path()
    path = Path(model).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(
            f"--model {model}: there is no such file; the llama engine takes the path of a GGUF "
            f"file, or {DEMO_MODEL!r} for the demo model"
        )
    return path


def _threads_for(path: Path) -> int:
    """Threads to compute with; one core is left to the node."""
    if path.stat().st_size < SMALL_MODEL_BYTES:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)) - 1)
    return max(1, (os.cpu_count() or 2) - 1)


def _version() -> str:
    """Of llama.cpp's package; the name of its release."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 (rarely asked)

    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return ""
