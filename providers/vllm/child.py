"""The vllm engine's child process: how it is started, probed, explained and cleared away."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from aimo_node.domain.models import EngineState
from aimo_node.errors import EngineFailed, EngineStartFailed
from aimo_node.ports.engine import Progress
from providers.children.bounded_log import BoundedLog
from providers.children.process import ChildProcess, Farewell, start_child
from providers.children.safeguard import Traces, clear_orphans
from providers.children.socket_folder import (
    claim_socket,
    nearby_folder,
    remove_socket,
    socket_traces,
)
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from providers.vllm.arguments import VllmPlan
from providers.vllm.failures import explain
from providers.vllm.hub_cache import downloaded_bytes
from providers.vllm.offer import Offer, read_offer
from providers.vllm.output import Output
from providers.vllm.progress import step_of
from providers.vllm.server import NOT_INSTALLED

READY_POLL_SECONDS: Final = 0.25
HEALTH_SECONDS: Final = 5.0
DOWNLOAD_POLL_SECONDS: Final = 2.0
ENDING_SECONDS: Final = 5.0
"""What vLLM needs to end itself when nothing runs any more."""

SOCKETS_PATH_BYTES_MAX: Final = 64
"""vLLM's processes talk over sockets with names of 36 characters; Linux allows paths of 107."""

_PRIVATE: Final = "AIMO_"
"""Our own settings, keys among them, are nobody else's business."""

_FOREIGN: Final = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__"})
"""They would lead another interpreter to the packages of this one."""

_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class VllmProgram:
    """vLLM's server, as `providers.children.process.start_child` takes it.

    Attributes:
        sockets: a private folder for those that vLLM makes for itself.
    """

    plan: VllmPlan
    socket: Path
    sockets: Path
    module: str = "vLLM"

    @property
    def folder(self) -> Path:
        """Nobody else works there, so that orphans are known by it."""
        return self.plan.state_folder

    def command(self) -> list[str]:
        """The command line; run by its path, since the interpreter may not be ours."""
        program = str(Path(__file__).with_name("server.py"))
        return [str(self.plan.python), program, *self.plan.arguments, "--uds", str(self.socket)]

    def environment(self) -> dict[str, str]:
        """Ours without what is ours alone, and with what vLLM is told by variables."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_PRIVATE) and name not in _FOREIGN
        }
        # Compilers and the like lie beside the interpreter when vLLM has a virtual environment.
        programs = [str(self.plan.python.parent), kept.get("PATH", os.defpath)]
        defaults = {
            "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_NO_USAGE_STATS": "1",  # the owner may want to tell, but has to say so
            "TORCHINDUCTOR_CACHE_DIR": os.path.join(  # noqa: PTH118 (a string is wanted)
                tempfile.gettempdir(), f"torchinductor_{os.getuid()}"
            ),
        }
        fixed = {
            "PATH": os.pathsep.join(programs),
            "TMPDIR": str(self.sockets),
            "VLLM_RPC_BASE_PATH": str(self.sockets),
            # An allowed host could send the engine on to any other.
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
            "NO_COLOR": "1",
        }
        return {**defaults, **kept, **fixed}


class VllmChild:
    """The supervisor's charge, see `providers.children.supervisor.Charge`.

    Attributes:
        ready: called after each start.
        gone: called after each end.
        upstream: the child that was launched last.
        offer: what it serves; None until the first one was ready.
        lacks_vllm: the interpreter has no vLLM.
    """

    name = "vllm"

    def __init__(self, plan: VllmPlan) -> None:
        self.plan = plan
        self.ready: Callable[[], None] = _ignore
        self.gone: Callable[[], None] = _ignore
        self.upstream = UnixUpstream(Path())
        self.offer: Offer | None = None
        self.lacks_vllm = False
        self._process: ChildProcess | None = None
        self._traces: tuple[Path, ...] = ()
        self._socket: Path | None = None
        self._log: BoundedLog | None = None
        self._output: Output | None = None
        self._progress: Progress | None = None
        self._heard_at = 0.0
        self._refusal = ""

    async def launch(self) -> ChildProcess:
        """See `Charge`."""
        plan = self.plan
        run_file = plan.state_folder / f"{self.name}.run"
        await clear_orphans(run_file, self.name)
        self._socket = await claim_socket(plan.state_folder, self.name)
        sockets = nearby_folder(plan.state_folder, f"{self.name}.tmp", SOCKETS_PATH_BYTES_MAX)
        self._traces = (sockets, *socket_traces(self._socket))
        self.upstream = UnixUpstream(self._socket)
        self._refusal = ""
        output = self._begin_log()
        program = VllmProgram(plan, self._socket, sockets)
        farewell = Farewell(traces=Traces(run_file, self._traces))
        # Cancelled between child and reaper it would leave one without the other for a moment.
        with trio.CancelScope(shield=True):
            self._process = await start_child(program, output, farewell)
        return self._process

    async def wait_ready(self, child: ChildProcess, progress: Progress) -> str:
        """See `Charge`."""
        self._progress = progress
        self._heard_at = trio.current_time()
        ending = ""
        async with trio.open_nursery() as nursery:

            async def wait_for_its_end() -> None:
                nonlocal ending
                ending = await child.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_its_end)
            nursery.start_soon(self._watch_download, progress)
            self._refusal = await self._until_it_answers(progress)
            await child.note_shared_memory()
            nursery.cancel_scope.cancel()
        self._progress = None
        return ending or self._refusal

    async def probe(self, timeout_seconds: float) -> bool:
        """See `Charge`."""
        try:
            status, _ = await ask_once(self.upstream, "/health", timeout_seconds=timeout_seconds)
        except EngineFailed:
            return False
        if status == 503 and self._process is not None:
            # Its server is there, its engine is dead: it will never answer again.
            _log.warning("engine.core_died", engine=self.name)
            self._process.kill()
        return status == 200

    def up(self) -> None:
        """See `Charge`."""
        _log.info("engine.ready", engine=self.name, model=self.plan.name)
        if self._process is not None:
            # From now on it may have answers to finish, and shared memory to give back.
            self._process.grace_seconds = self.plan.stop_seconds + ENDING_SECONDS
        self.ready()

    def down(self) -> None:
        """See `Charge`."""
        self.gone()
        for path in self._traces:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        if self._socket is not None:
            remove_socket(self._socket)
        # Whoever calls this again must not remove what another engine has made there since.
        self._socket, self._traces = None, ()

    def explain(self, ending: str) -> str:
        """See `Charge`."""
        self.lacks_vllm = ending == f"ended with exit code {NOT_INSTALLED}"
        if self._output is None or self._log is None:
            return ending
        model = self.plan.model
        reason = self._refusal or explain(self._output.lines(), model, ending)
        return f"vLLM cannot serve {model}: {reason} (more in {self._log.path})"

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = self._output = None

    def _begin_log(self) -> Output:
        if self._log is None or self._output is None:
            self._log = BoundedLog(self.plan.state_folder / f"{self.name}.log")
            self._output = Output(self._log, self._hear)
        self._output.begin(f"vLLM for {self.plan.name}")
        return self._output

    def _hear(self, line: str) -> None:
        """A line of its log; once it is ready nobody needs them."""
        if self._progress is None:
            return
        self._heard_at = trio.current_time()
        if step := step_of(line):
            self._progress(f"{self.plan.name}: {step[0]}", step[1])

    async def _until_it_answers(self, progress: Progress) -> str:
        """Wait until it is healthy and has said what it serves; else why it will not do."""
        while not await self.probe(HEALTH_SECONDS):
            if trio.current_time() - self._heard_at > self.plan.silence_seconds:
                return (
                    f"it has said nothing for {self.plan.silence_seconds:g} s while starting; "
                    f'--engine-args "--silence-seconds {2 * self.plan.silence_seconds:g}" gives '
                    f"it more"
                )
            await trio.sleep(READY_POLL_SECONDS)
        progress(f"{self.plan.name}: checking what it serves")
        try:
            self.offer = await read_offer(self.upstream, self.plan)
        except (EngineFailed, EngineStartFailed) as error:
            return str(error)
        return ""

    async def _watch_download(self, progress: Progress) -> None:
        """Tell how much has come from the hub, until cancelled; vLLM itself is silent about it."""
        if self.plan.folder is not None:
            return
        told = await downloaded_bytes(self.plan)
        while True:
            await trio.sleep(DOWNLOAD_POLL_SECONDS)
            here = await downloaded_bytes(self.plan)
            if here > told:
                told = here
                self._heard_at = trio.current_time()
                text = f"{self.plan.name}: downloading, {here / 1e9:.1f} GB so far"
                progress(text, EngineState.DOWNLOADING)


def missing(python: Path) -> str:
    """The sentence for an interpreter without vLLM."""
    own = "this node's environment" if python == Path(sys.executable) else str(python)
    line = f"No vLLM is installed for {own}"
    return f"the vllm engine cannot start: {explain(_only(line), '', '')}"


def _only(line: str) -> Sequence[str]:
    return [line]


def _ignore() -> None:
    """Before `run` nobody waits for ready."""
