"""The engine contract, passed by the vllm engine: with a stand-in, and with the real vLLM.

The real one is what `scripts/test --vllm` runs. It starts in half a minute, so that most checks
share one engine there.
"""

import os
import re
import signal
import socket
import tempfile
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from aimo_node.domain.ids import ModelName
from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.testing import engine_contract, vllm_standin
from aimo_node.testing.engine_contract import Case, EngineContract, EngineHarness, eventually
from providers.children import orphans
from providers.children.supervisor import RestartPolicy
from providers.engines.vllm import VllmEngine
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from providers.registry import create_engine

REAL_PYTHON = os.environ.get("AIMO_TEST_VLLM_PYTHON", "")
QUICK = RestartPolicy(delay_seconds=0.05, probe_every_seconds=0.2)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class VllmHarness(EngineHarness):
    """What the stand-in and the real one have in common."""

    requests_max = 4

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def settings(self) -> EngineSettings:
        """Of the stand-in, or of the real one."""

    def create(self) -> Engine:
        engine = create_engine("vllm", self.settings())
        assert isinstance(engine, VllmEngine)
        return VllmEngine(engine.plan, QUICK)

    def run(self) -> orphans.Run | None:
        return orphans.read_run(self.folder / "vllm.run")

    def strike(self, case: Case) -> None:
        """Kill the server alone; its engine core and worker are then nobody's."""
        run = self.run()
        assert run is not None
        os.kill(run.leader.number, signal.SIGKILL)

    async def generating(self) -> int:
        _, metrics = await ask_once(UnixUpstream(self.folder / "vllm.sock"), "/metrics")
        found = re.search(rb"^vllm:num_requests_running\{.*\} (\d+)", metrics, re.MULTILINE)
        assert found is not None
        return int(found[1])

    def leftovers(self) -> list[str]:
        left = [
            f"process {one.pid}"
            for one in psutil.process_iter(["cwd", "status"])
            if one.info["cwd"] == str(self.folder) and one.info["status"] != psutil.STATUS_ZOMBIE
        ]
        return left + [
            str(path) for path in self.folder.iterdir() if path.name not in {"vllm.log", "program"}
        ]


class StandInHarness(VllmHarness):
    model = ModelName("stand-in")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "program").mkdir()
        self.python = vllm_standin.install(folder / "program")

    def settings(self) -> EngineSettings:
        return EngineSettings(
            self.folder,
            "somebody/stand-in",
            served_name=self.model,
            engine_args=["--python", str(self.python)],
            requests_max=self.requests_max,
        )

    def body(self, case: Case) -> dict[str, Any]:
        match case:
            case Case.LENGTH:
                return {"messages": messages("hello there"), "max_tokens": 3}
            case Case.LONG | Case.DIES:
                return {"messages": messages("hello standin=endless")}
            case Case.CONTEXT_OVERFLOW:
                return {"messages": messages("hello " * 2000)}
            case Case.BUSY:
                return {"messages": messages("hello standin=busy")}
            case Case.BREAKS_OFF:
                return {"messages": messages("hello standin=error-then-done")}
        return {"messages": messages("hello there")}


class TestVllmEngine(EngineContract):
    @pytest.fixture
    def harness(self, short_folder: Path) -> EngineHarness:
        return StandInHarness(short_folder)


class RealHarness(VllmHarness):
    """The demo model's safetensors in the real vLLM, small and without compiling."""

    model = ModelName("tiny")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shared: Engine | None = None

    def settings(self) -> EngineSettings:
        arguments = ["--python", REAL_PYTHON, "--enforce-eager", "--max-model-len", "1024"]
        return EngineSettings(
            self.folder, "tiny", engine_args=arguments, requests_max=self.requests_max
        )

    def body(self, case: Case) -> dict[str, Any]:
        match case:
            case Case.LENGTH:
                return {"messages": messages("Count to 20."), "max_tokens": 3, "temperature": 0}
            case Case.LONG | Case.DIES:
                story = messages("Tell me a sea story about Ada and a kite.")
                return {"messages": story, "max_tokens": 950, "ignore_eos": True, "temperature": 0}
            case Case.CONTEXT_OVERFLOW:
                return {"messages": messages("hello " * 2000)}
        return {"messages": messages("Count to 20."), "temperature": 0}

    def leftovers(self) -> list[str]:
        return [left for left in super().leftovers() if not left.endswith("digests.json")]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """The shared engine if there is one; then it must be idle afterwards."""
        if self.shared is None:
            async with super().running() as engine:
                yield engine
            return
        yield self.shared
        shared = self.shared
        await eventually(lambda: shared.load().running == 0, "nothing runs any more")


OWN_ENGINE = (
    "test_cancelled_run_leaves_nothing",
    "test_drain_lets_an_answer_come_to_its_end",
    "test_drain_waits_for_what_is_running",
    "test_engine_that_is_not_running_fails",
    "test_kill_ends_everything_at_once",
)
"""Checks after which an engine is of no use; all others share one."""

IMPOSSIBLE = {Case.BUSY, Case.BREAKS_OFF}


def shared_checks() -> list[str]:
    """Every check of the contract that the real one can be brought into, but for its own ones."""
    checks = [name for name in dir(EngineContract) if name.startswith("test_")]
    return [
        name
        for name in checks
        if name not in OWN_ENGINE
        and getattr(getattr(EngineContract, name), "needed_case", None) not in IMPOSSIBLE
    ]


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REAL_PYTHON, reason="no vLLM: scripts/test --vllm installs one")
class TestRealVllm:
    @pytest.fixture
    def harness(self, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> RealHarness:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(engine_contract, "PATIENCE_SECONDS", 300.0)
        return RealHarness(short_folder)

    async def test_one_engine_passes_the_contract(
        self, harness: RealHarness, subtests: pytest.Subtests
    ) -> None:
        async with harness.running() as engine:
            harness.shared = engine
            for name in shared_checks():
                with subtests.test(name):
                    await getattr(EngineContract(), name)(harness)
            harness.shared = None

    @pytest.mark.parametrize("name", OWN_ENGINE)
    async def test_engine_of_its_own_passes_the_contract(
        self, harness: RealHarness, name: str
    ) -> None:
        await getattr(EngineContract(), name)(harness)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """pytest's own temporary folders are too deep for a Unix socket."""
    assert hasattr(socket, "AF_UNIX")
    with tempfile.TemporaryDirectory(prefix="aimo") as folder:
        yield Path(folder)
