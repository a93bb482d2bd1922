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
from typing import Any, Final, Literal

import msgspec
import trio

from aimo_node.domain.ids import Endpoint, ModelName
from aimo_node.domain.models import EngineState, Health, Load
from aimo_node.errors import (
    ConfigError,
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
from providers.answer_meter import AnswerMeter
from providers.answers import NOT_JSON
from providers.arguments import EngineArguments, integer_between, refuse_upstream_settings
from providers.children.supervisor import RestartPolicy, Supervisor
from providers.http.upstream import ask_once
from providers.llama.cache_slots import Slot
from providers.llama.child import LlamaChild
from providers.llama.plan import POOLINGS, REQUESTS_MAX_DEFAULT, LlamaPlan, completed
from providers.llama.requests import (
    PATHS,
    OverflowTold,
    answer_bodies,
    embeddings_body,
    prompts_of,
)
from providers.llama.several_answers import SeveralAnswers
from providers.llama.whole_completion import LegacyLogprobs, WholeCompletion
from providers.openai.dialect import ask, ask_data, refusal
from providers.openai.whole import WholeAnswer

DEMO_MODEL: Final = "tiny"
PACKAGE: Final = "xllamacpp"
SMALL_MODEL_BYTES: Final = 64 << 20
"""Below this, threads cost more in waiting for each other than they compute."""


def create(settings: EngineSettings) -> LlamaEngine:
    """Entry point ``llama``.

    Raises:
        ConfigError: no such file, or unknown engine arguments.
    """
    refuse_upstream_settings("llama", settings)
    arguments = EngineArguments("llama")
    arguments.add_argument("--threads", type=integer_between(1, 256), default=0)
    arguments.add_argument("--context", type=integer_between(128, 1 << 24), default=0)
    arguments.add_argument("--gpu-layers", type=integer_between(-1, 1000), default=-1)
    arguments.add_argument("--embeddings", action="store_true")
    arguments.add_argument("--pooling", choices=sorted(POOLINGS), default="mean")
    found = arguments.read(settings.engine_args)
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
        pooling=found.pooling if found.embeddings else "",
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
        self._meter = AnswerMeter()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Read the weights, then keep a child alive until cancelled; `ready` after each start.

        Raises:
            EngineStartFailed: the weights cannot be used, or the child does not start.
        """
        if importlib.util.find_spec(PACKAGE) is None:
            raise EngineStartFailed(
                f"the llama engine needs {PACKAGE}: pip install {PACKAGE}", not_installed=True
            )
        progress(f"checking the weights of {self.plan.name}")
        self.plan = await trio.to_thread.run_sync(
            completed,
            self.plan,
            abandon_on_cancel=True,  # type: ignore[call-arg, unused-ignore] # stubs of older trio
        )
        self._child.plan = self.plan
        self._child.ready = ready
        try:
            await self._supervisor.run(progress)
        finally:
            self._child.close()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        self._check(request)
        if request.endpoint is Endpoint.EMBEDDINGS:
            await self._embed(request, sink)
            return
        bodies = answer_bodies(request)
        with self._admission.request():
            self._check_running()
            with self._child.slots.take(request.salt) as slot:
                await self._answer(request, bodies, slot, _shaped(request, sink))

    async def count_tokens(self, request: EngineRequest) -> int:
        """Tokens of the prompt, template included, by the model's own tokenizer.

        Raises:
            ModelNotFound, InvalidRequest, EngineFailed.
        """
        self._check(request)
        self._check_running()
        if request.endpoint is Endpoint.CHAT:
            found = await self._told("/v1/chat/completions/input_tokens", dict(request.body))
            return _number(found, "input_tokens")
        counted = 0
        for prompt in prompts_of(request.body):
            if isinstance(prompt, str):
                asked = {"content": prompt, "add_special": True, "parse_special": True}
                counted += len((await self._told("/tokenize", asked)).get("tokens") or ())
            else:
                counted += len(prompt)
        return counted

    def capabilities(self) -> Capabilities:
        """One model; context, digest and endpoints are known once it is ready."""
        return Capabilities("llama", (self.plan.model(),), self.plan.slots, version=_version())

    def health(self) -> Health:
        """As the supervisor sees the child."""
        return self._supervisor.health

    def load(self) -> Load:
        """Share of the slots taken; nobody but this node sends requests to the child."""
        load = self._admission.load()
        return replace(
            load,
            kv_used=self._child.kv_used if load.running else 0.0,
            prefix_hits=self._meter.prefix_hits,
            first_token_seconds=self._meter.first_token_seconds,
        )

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Kill the child's process group and remove its socket; idempotent."""
        self._supervisor.kill()
        self._child.down()

    async def _answer(
        self, request: EngineRequest, bodies: list[dict[str, Any]], slot: Slot, sink: AnswerSink
    ) -> None:
        """Ask for one answer after another, all in the same slot."""
        # An embedding may have used any slot meanwhile, whoever asked for it.
        place = {"id_slot": slot.number, "cache_prompt": slot.reuse and not self.plan.embeds}
        if len(bodies) == 1:
            await self._ask(request, {**bodies[0], **place}, sink)
            return
        several = SeveralAnswers(sink, _field(request))
        before: object = None
        for index, body in enumerate(bodies):
            prompt = body.get("prompt")
            answer = several.answer(index, same_prompt=bool(index) and prompt == before)
            await self._ask(request, {**body, **place}, answer)
            before = prompt
            # The slot holds this consumer's own tokens now.
            place["cache_prompt"] = not self.plan.embeds
        several.finish()

    async def _ask(self, request: EngineRequest, body: Mapping[str, Any], sink: AnswerSink) -> None:
        upstream = OverflowTold(self._child.upstream, request)
        asked = {**body, "model": self.plan.name}
        await ask(upstream, PATHS[request.endpoint], asked, self._meter.watch(sink))

    async def _embed(self, request: EngineRequest, sink: AnswerSink) -> None:
        prompts_of(request.body)
        body = embeddings_body(request, self.plan.embedding_numbers)
        with self._admission.request():
            self._check_running()
            upstream = OverflowTold(self._child.upstream, request)
            asked = {**body, "model": self.plan.name}
            await ask_data(upstream, PATHS[request.endpoint], asked, sink)

    async def _told(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a short question about tokens."""
        status, answer = await ask_once(self._child.upstream, path, msgspec.json.encode(asked))
        if status != 200:
            raise refusal(status, {}, answer)
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except NOT_JSON as error:
            raise EngineFailed("llama.cpp does not say how many tokens there are") from error

    def _check(self, request: EngineRequest) -> None:
        if request.model != self.plan.name:
            raise ModelNotFound(f"this engine serves {self.plan.name}, not {request.model}")
        if request.endpoint not in self.plan.endpoints:
            served = ", ".join(endpoint.name.lower() for endpoint in self.plan.endpoints)
            raise InvalidRequest(
                f"{self.plan.name} is served for {served}, not for {request.endpoint.name.lower()}"
            )

    def _check_running(self) -> None:
        if self._supervisor.state is not EngineState.RUNNING:
            raise EngineFailed("the engine is not running; it is being started again")


def _field(request: EngineRequest) -> Literal["delta", "text"]:
    return "text" if request.endpoint is Endpoint.COMPLETIONS else "delta"


def _shaped(request: EngineRequest, sink: AnswerSink) -> AnswerSink:
    """The sink that turns what llama.cpp streams into what was asked for."""
    if request.endpoint is Endpoint.CHAT:
        return sink if request.stream else WholeAnswer(sink)
    if not request.stream:
        sink = WholeCompletion(sink)
    return LegacyLogprobs(sink) if request.body.get("logprobs") is not None else sink


def _number(found: Mapping[str, Any], name: str) -> int:
    number = found.get(name)
    if not isinstance(number, int):
        raise EngineFailed("llama.cpp does not say how many tokens there are")
    return number


def _weights_path(model: str) -> Path:
    if model in {"", DEMO_MODEL}:
        from providers.demo_model import gguf_path  # noqa: PLC0415 (only who uses it loads it)

        return gguf_path()
    path = Path(model).expanduser().absolute()
    try:
        with path.open("rb"):
            return path
    except IsADirectoryError as error:
        raise ConfigError(
            f"--model {model} is a folder; the llama engine takes the path of one GGUF file"
            f"{_suggested(path)}"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"--model {model}: there is no such file; the llama engine takes the path of a GGUF "
            f"file, or {DEMO_MODEL!r} for the demo model"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--model {model} cannot be read: {error.strerror}; let the user of this node read it"
        ) from error


def _suggested(folder: Path) -> str:
    """A file in it that would do."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    return f", such as {folder / found[0]}" if found else ""


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
