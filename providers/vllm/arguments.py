"""Reads the owner's ``--engine-args`` for vllm: a few are ours, the others go to vLLM as they are.

What would break the node's control over its child is refused, with the way that does work.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aimo_node.domain.ids import ModelName
from aimo_node.errors import ConfigError
from aimo_node.ports.engine import EngineSettings
from providers.arguments import EngineArguments, integer_between, number_between
from providers.vllm.tools import NO_PARSER, read_config, tool_parser

REQUESTS_MAX_DEFAULT: Final = 256
"""vLLM's own on most graphics cards; it schedules so many sequences at a time."""

STOP_SECONDS_DEFAULT: Final = 10
SILENCE_SECONDS_DEFAULT: Final = 1800.0
"""Compiling the kernels of a large model for the first time is quiet for some minutes."""

DEMO_MODEL: Final = "tiny"
NO_DOMAIN: Final = "none.invalid"
"""vLLM takes an empty list of media domains for all of them; nobody can have this one."""

_ENGINE_SOCKET: Final = "the node talks to vLLM over a Unix socket that it makes itself"
_MESH: Final = "consumers never reach vLLM itself; keys and certificates belong to the edge"
_MODEL: Final = "say it with --model, and its name in the mesh with --served-name"

REFUSED: Final[Mapping[str, str]] = {
    "--host": _ENGINE_SOCKET,
    "--port": _ENGINE_SOCKET,
    "--uds": _ENGINE_SOCKET,
    "--grpc": _ENGINE_SOCKET,
    "--grpc-port": _ENGINE_SOCKET,
    "--root-path": _ENGINE_SOCKET,
    "--api-key": _MESH,
    "--ssl-keyfile": _MESH,
    "--ssl-certfile": _MESH,
    "--ssl-ca-certs": _MESH,
    "--ssl-cert-reqs": _MESH,
    "--ssl-ciphers": _MESH,
    "--enable-ssl-refresh": _MESH,
    "--model": _MODEL,
    "--served-model-name": _MODEL,
    "--headless": "the node needs vLLM's HTTP server",
    "--config": "write its settings into --engine-args: a file could change what we rely on",
    "--disable-log-stats": "the node reads the engine's load from them",
    "--allowed-media-domains": "list the hosts in the node's own setting media_domains",
    "--data-parallel-multi-port-external-lb": "start one provider for each server instead",
}
"""vLLM's own arguments that the node sets, or that would make the engine unreachable for it."""

OURS: Final = ("--max-num-seqs", "--shutdown-timeout", "--tool-call-parser")
"""vLLM's own arguments that the node reads, and passes on."""


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """How vLLM is to run.

    Attributes:
        python: the interpreter that has vLLM.
        model: a folder, or a name at the hub.
        name: the model's in the mesh.
        requests_max: sequences at a time.
        stop_seconds: how long running answers may take when the process is asked to stop.
        silence_seconds: at most, while it starts.
        tool_parser: vLLM's name for it; empty without tools.
        arguments: for vLLM, complete but for the socket.
        sees_images: False when the owner has forbidden them.
        passed: the owner's own ones among `arguments`.
    """

    python: Path
    model: str
    name: ModelName
    state_folder: Path
    requests_max: int = REQUESTS_MAX_DEFAULT
    stop_seconds: int = STOP_SECONDS_DEFAULT
    silence_seconds: float = SILENCE_SECONDS_DEFAULT
    tool_parser: str = ""
    arguments: tuple[str, ...] = ()
    sees_images: bool = True
    passed: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Where the model lies, if it is named by its path."""
        path = Path(self.model)
        return path if path.is_absolute() else None


def read_plan(settings: EngineSettings) -> VllmPlan:
    """The plan that the owner's settings make.

    Raises:
        ConfigError: they cannot work; the message names the flag and the fix.
    """
    if settings.endpoint:
        raise ConfigError(
            "the vllm engine starts a vLLM of its own; publish one that already runs with "
            f"--engine openai --endpoint {settings.endpoint}"
        )
    ours = EngineArguments("vllm")
    ours.add_argument("--python", type=Path)
    ours.add_argument("--max-num-seqs", type=integer_between(1, 65_536), default=0)
    ours.add_argument("--shutdown-timeout", type=integer_between(0, 3600), default=None)
    ours.add_argument("--silence-seconds", type=number_between(1, 86_400), default=None)
    ours.add_argument("--tool-call-parser", default="")
    # vLLM reads underscores as dashes, so that `--max_num_seqs` must not slip past us.
    found, passed = ours.parse_known_args([_dashed(argument) for argument in settings.engine_args])
    _check_passed(passed, settings.state_folder)
    model, served_name = _model_of(settings)
    stop_seconds = STOP_SECONDS_DEFAULT
    if found.shutdown_timeout is not None:
        stop_seconds = found.shutdown_timeout
    requests_max = _requests_max(settings.requests_max, found.max_num_seqs)
    parser = _parser(found.tool_call_parser, model)
    name = ModelName(served_name or _own_name(settings.model, model))
    arguments = [
        *("--model", model, "--served-model-name", name),
        *("--max-num-seqs", str(requests_max), "--shutdown-timeout", str(stop_seconds)),
        *("--disable-uvicorn-access-log", "--enable-prompt-tokens-details"),
        *("--allowed-media-domains", *(sorted(settings.media_domains) or [NO_DOMAIN])),
        *(("--enable-auto-tool-choice", "--tool-call-parser", parser) if parser else ()),
        *(("--enable-lora",) if _value(passed, "--lora-modules") is not None else ()),
        *passed,
    ]
    return VllmPlan(
        python=_python(found.python),
        model=model,
        name=name,
        state_folder=settings.state_folder.absolute(),
        requests_max=requests_max,
        stop_seconds=stop_seconds,
        silence_seconds=found.silence_seconds or SILENCE_SECONDS_DEFAULT,
        tool_parser=parser,
        arguments=tuple(arguments),
        sees_images=not _forbids_images(passed),
        passed=tuple(passed),
    )


def option(plan: VllmPlan, name: str) -> str:
    """The value the owner gave to one of vLLM's own options; empty if none."""
    return _value(plan.passed, name) or ""


def has_vllm(python: Path) -> bool:
    """Whether an interpreter may have vLLM; known only of our own."""
    return python != Path(sys.executable) or importlib.util.find_spec("vllm") is not None


def _model_of(settings: EngineSettings) -> tuple[str, str]:
    """What vLLM calls the model, and its name in the mesh if the owner gave one."""
    model, served_name = settings.model, settings.served_name
    if settings.models:
        if len(settings.models) > 1:
            raise ConfigError(
                "a vllm engine serves one model and its LoRA adapters (--engine-args "
                '"--lora-modules NAME=PATH"): write a [[provider.engine]] for each other model'
            )
        ((served_name, model),) = settings.models.items()
    if model in {"", DEMO_MODEL}:
        from providers.demo_model import directory  # noqa: PLC0415 (only who uses it loads it)

        return str(directory()), served_name or DEMO_MODEL
    path = Path(model).expanduser()
    if path.exists():
        return str(path.absolute()), served_name
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise ConfigError(
            f"--model {model}: there is no such folder; vllm takes the path of a model's folder, "
            f"or its name at the Hugging Face hub, such as Qwen/Qwen3-0.6B"
        )
    return model, served_name


def _own_name(said: str, model: str) -> str:
    path = Path(model)
    return path.name if path.is_absolute() else said or model


def _requests_max(ours: int, theirs: int) -> int:
    if ours and theirs and ours != theirs:
        raise ConfigError(
            f"--requests-max {ours} and vLLM's --max-num-seqs {theirs} mean the same: say one"
        )
    return ours or theirs or REQUESTS_MAX_DEFAULT


def _parser(wanted: str, model: str) -> str:
    """The tool parser: the owner's, none, or that of the model's family."""
    if wanted == NO_PARSER:
        return ""
    return wanted or tool_parser(model, read_config(Path(model)))


def _python(wanted: Path | None) -> Path:
    """The interpreter; a link is kept, since a virtual environment is found by it."""
    if wanted is None:
        return Path(sys.executable)
    found = shutil.which(os.fspath(wanted.expanduser()))
    if found is None:
        raise ConfigError(
            f'--engine-args "--python {wanted}": there is no such program; name the Python of the '
            f"environment that has vLLM, such as /opt/vllm/bin/python"
        )
    return Path(found).absolute()


def _check_passed(passed: Sequence[str], state_folder: Path) -> None:
    if passed and not passed[0].startswith("-"):
        raise ConfigError(
            f"--engine-args of vllm: {passed[0]!r} belongs to no option; the model is said with "
            f"--model"
        )
    for name, value in _options(passed):
        # vLLM takes any beginning of an option that is unambiguous for the option.
        for refused, reason in REFUSED.items():
            if refused.startswith(name):
                raise ConfigError(f"--engine-args of vllm: {refused} is not yours to set: {reason}")
        for ours in OURS:
            if ours.startswith(name):
                raise ConfigError(f"--engine-args of vllm: write {name} out: {ours}")
        if name == "--allowed-local-media-path":
            _check_media_path(value, state_folder)


def _check_media_path(value: str, state_folder: Path) -> None:
    folder = Path(value).expanduser().resolve()
    secret = (state_folder.resolve(), Path.home())
    if not value or any(place == folder or folder in place.parents for place in secret):
        raise ConfigError(
            f"--engine-args of vllm: --allowed-local-media-path {value or '/'} would let requests "
            f"read this node's own files; name a folder that holds nothing but media"
        )


def _forbids_images(passed: Sequence[str]) -> bool:
    if any(name == "--language-model-only" for name, _ in _options(passed)):
        return True
    try:
        limits = json.loads(_value(passed, "--limit-mm-per-prompt") or "{}")
    except ValueError:
        return False  # vLLM says what is wrong with it
    return isinstance(limits, dict) and limits.get("image") == 0


def _value(passed: Sequence[str], name: str) -> str | None:
    return next((value for option, value in _options(passed) if option == name), None)


def _options(passed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, or its first one; a flag's is empty."""
    for position, argument in enumerate(passed):
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            following = passed[position + 1 : position + 2]
            if not value and following and not following[0].startswith("--"):
                value = following[0]
            yield name, value


def _dashed(argument: str) -> str:
    """``--max_num_seqs=4_0`` as ``--max-num-seqs=4_0``; what is no option stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    head, dot, rest = name.partition(".")
    return head.replace("_", "-") + dot + rest + equals + value
