"""Check of engines: what the running node says of them, or whether they could start here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.folder import STATE
from aimo_node.assembly.doctor.machine import Machine
from aimo_node.assembly.doctor.program import CONFIGURATION
from aimo_node.assembly.doctor.running_node import NODE
from aimo_node.assembly.doctor.threads import in_thread
from aimo_node.assembly.engines import EngineMaker, free_label
from aimo_node.domain.models import EngineState
from aimo_node.errors import ConfigError, EngineFailed, EngineStartFailed

if TYPE_CHECKING:
    from aimo_node.ports.engine import Engine
    from providers.engines.llama import LlamaEngine
    from providers.engines.vllm import VllmEngine

LOOK_SECONDS: Final = 8.0
"""An upstream answers its list in five or not at all."""
_FAILED: Final = frozenset({EngineState.ERROR.text, EngineState.NOT_INSTALLED.text})
_ON_ITS_WAY: Final = frozenset(
    {EngineState.STARTING.text, EngineState.DOWNLOADING.text, EngineState.INSTALLED.text}
)


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """One engine.

    Attributes:
        said: how it is, or why it cannot start; the engine's own words, which name the fix.
        layer: where it went wrong.
        failed, waiting: it cannot work; it does not yet.
        upstream: it is a server elsewhere that matters.
    """

    label: str
    said: str
    layer: Layer = Layer.ENGINE
    failed: bool = False
    waiting: bool = False
    upstream: str = ""


async def _look_at_engines(case: Case) -> list[EngineSeen]:
    node = case.glimpse(NODE)
    if node is not None and node.answer is not None:
        return [_by_node(one) for one in node.answer["engines"]]
    seen = case.seen(CONFIGURATION)
    settings = seen.usable
    with tempfile.TemporaryDirectory(prefix="aimo-doctor-") as elsewhere:
        # An engine wants a folder; a state folder that is not there yet is not made for a look.
        if not settings.node.state.is_dir():
            node_settings = settings.node.model_copy(update={"state": Path(elsewhere)})
            settings = settings.model_copy(update={"node": node_settings})
        maker = EngineMaker(settings, seen.roles)
        labels: list[str] = []
        found: dict[str, EngineSeen] = {}

        async def look(index: int) -> None:
            section, label = settings.provider.engines[index], labels[index]
            try:
                engine = maker.plan(section, label).make()
                said = await _could_start(engine, maker.folder(label), case.machine)
                found[label] = EngineSeen(label, said, upstream=section.endpoint)
            except (ConfigError, EngineStartFailed, EngineFailed, OSError) as error:
                said = str(error) or type(error).__name__
                layer = Layer.AUTH if _is_about_access(error) else Layer.ENGINE
                found[label] = EngineSeen(
                    label, said, layer, failed=True, upstream=section.endpoint
                )

        async with trio.open_nursery() as nursery:
            for index, section in enumerate(settings.provider.engines):
                labels.append(free_label(section.name, labels))
                nursery.start_soon(look, index)
    return [found[label] for label in labels]


def _by_node(one: dict[str, object]) -> EngineSeen:
    label, state = str(one["label"]), str(one["state"])
    said = f"{state}; {one['detail']}" if one["detail"] else state
    if state == EngineState.RUNNING.text:
        offered = one["offered"]
        said = f"{state}, serves {', '.join(offered)}" if isinstance(offered, list) else state
    return EngineSeen(label, said, failed=state in _FAILED, waiting=state in _ON_ITS_WAY)


async def _could_start(engine: Engine, folder: Path, machine: Machine) -> str:
    """What the engine would do if it were started; nothing is.

    Raises:
        EngineStartFailed, EngineFailed: it would not start.
    """
    from providers.engines.copilot import CopilotEngine  # noqa: PLC0415 (only with an engine)
    from providers.engines.llama import LlamaEngine  # noqa: PLC0415
    from providers.engines.vllm import VllmEngine  # noqa: PLC0415
    from providers.upstreams.listing_engine import ListingEngine  # noqa: PLC0415

    match engine:
        case ListingEngine():
            return f"the upstream answers and serves {', '.join(await engine.look())}"
        case LlamaEngine():
            return await in_thread(partial(_read_gguf, engine, machine))
        case VllmEngine():
            return _find_vllm(engine)
        case CopilotEngine():
            return _find_login(folder)
        case _:
            return "its settings are accepted"


def _read_gguf(engine: LlamaEngine, machine: Machine) -> str:
    from providers.engines.llama import PACKAGE  # noqa: PLC0415
    from providers.llama.gguf_head import read_head  # noqa: PLC0415
    from providers.llama.plan import check_memory  # noqa: PLC0415

    if not machine.has_package(PACKAGE):
        raise EngineStartFailed(f"the llama engine needs {PACKAGE}: pip install {PACKAGE}")
    head = read_head(engine.plan.weights)
    check_memory(engine.plan)
    kind = head.architecture or "model of unknown kind"
    return f"{engine.plan.weights} is a {kind} and fits into memory"


def _find_vllm(engine: VllmEngine) -> str:
    from providers.vllm.arguments import has_vllm  # noqa: PLC0415
    from providers.vllm.child import missing  # noqa: PLC0415
    from providers.vllm.hub_cache import model_folder  # noqa: PLC0415

    plan = engine.plan
    if not plan.python.exists():
        raise EngineStartFailed(f"there is no interpreter {plan.python}: see --python")
    if not has_vllm(plan.python):
        raise EngineStartFailed(missing(plan.python), not_installed=True)
    here = "is here" if model_folder(plan) is not None else "is downloaded at the first start"
    return f"{plan.model} {here}; the GPU is only tried when vLLM starts"


def _find_login(folder: Path) -> str:
    from providers.copilot.credentials import find_credential, load_credential  # noqa: PLC0415
    from providers.engines.copilot import NOT_LOGGED_IN  # noqa: PLC0415

    if load_credential(find_credential(folder)) is None:
        raise NotLoggedIn(NOT_LOGGED_IN)
    return "somebody is logged in; whether GitHub still accepts it: aimo check-usage"


class NotLoggedIn(EngineStartFailed):
    """The engine has nobody to act for."""


def _is_about_access(error: Exception) -> bool:
    from providers.upstreams.listing_engine import NoAccess  # noqa: PLC0415

    return isinstance(error, NoAccess | NotLoggedIn)


def judge_engines(seen: Sequence[EngineSeen]) -> list[Finding]:
    """One finding for each engine."""
    if not seen:
        return [ok(Layer.ENGINE, "this node has no engine")]
    return [_judge_engine(one) for one in seen]


def _judge_engine(one: EngineSeen) -> Finding:
    said = f"{one.label}: {one.said}"
    if one.waiting:
        return warning(one.layer, said, "wait for it; its progress is in the node's log")
    if not one.failed:
        return ok(one.layer, said)
    if one.layer is Layer.AUTH:
        do = "give a key that the upstream takes, or log in again"
        return problem(one.layer, said, do)
    where = f"; see that {one.upstream} runs and is the right --endpoint" if one.upstream else ""
    return problem(one.layer, said, f"mend what it says{where}")


ENGINES: Final = Check(
    "engine",
    Layer.ENGINE,
    _look_at_engines,
    judge_engines,
    needs=(CONFIGURATION, STATE),
    follows=(NODE,),
    seconds=LOOK_SECONDS,
)
