"""Every engine, and the fake one, passes the public suite."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import Case, EngineContract, EngineHarness
from aimo_node.testing.fake_engine import FAKE_ANSWER, FakeEngine, Fault
from aimo_node.testing.upstream import StandInUpstream, stand_in_upstream
from providers.children.supervisor import RestartPolicy
from providers.engines import llama
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from providers.registry import create_engine
from tests.integration.llama_parts import command_line


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class FakeHarness(EngineHarness):
    model = ModelName("fake")
    requests_max = 4

    def __init__(self) -> None:
        self.engine = FakeEngine()

    def create(self) -> Engine:
        self.engine = FakeEngine(requests_max=self.requests_max)
        return self.engine

    def body(self, case: Case) -> dict[str, Any]:
        self.engine.answer = FAKE_ANSWER
        match case:
            case Case.LENGTH:
                return {"messages": messages("hello"), "max_tokens": 3}
            case Case.LONG | Case.DIES:
                self.engine.answer = FAKE_ANSWER * 10_000
            case Case.CONTEXT_OVERFLOW:
                return {"messages": messages("hello " * 2000)}
            case Case.BUSY:
                self.engine.fail_next(Fault.REFUSES)
            case Case.BREAKS_OFF:
                self.engine.fail_next(Fault.BREAKS_OFF)
        return {"messages": messages("hello")}

    def strike(self, case: Case) -> None:
        self.engine.crash()
        self.engine.revive()

    async def generating(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.engine.running

    def leftovers(self) -> list[str]:
        return ["requests"] if self.engine.running else []


class TestFakeEngine(EngineContract):
    @pytest.fixture
    def harness(self) -> EngineHarness:
        return FakeHarness()


class EchoHarness(EngineHarness):
    model = ModelName("echo")
    requests_max = 8

    def __init__(self, folder: Path, delay_ms: float) -> None:
        self.folder = folder
        self.delay_ms = delay_ms
        self.engine: Engine | None = None

    def create(self) -> Engine:
        arguments = ["--tokens", "20", "--delay-ms", str(self.delay_ms)]
        settings = EngineSettings(
            self.folder, "echo", engine_args=arguments, requests_max=self.requests_max
        )
        self.engine = create_engine("echo", settings)
        return self.engine

    def body(self, case: Case) -> dict[str, Any]:
        match case:
            case Case.LENGTH:
                return {"messages": messages("say this again"), "max_tokens": 3}
            case Case.LONG:
                text = "say it mock-tokens=2000 mock-delay-us=5000"
                return {"messages": messages(text)}
        return {"messages": messages("say this again")}

    async def generating(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.engine.load().running if self.engine else 0

    def leftovers(self) -> list[str]:
        return ["requests"] if self.engine and self.engine.load().running else []


class TestEchoEngine(EngineContract):
    cases = frozenset({Case.SHORT, Case.LENGTH, Case.LONG})

    @pytest.fixture(params=[0, 2], ids=["flat-out", "paced"])
    def harness(self, request: pytest.FixtureRequest, tmp_path: Path) -> EngineHarness:
        return EchoHarness(tmp_path, request.param)


class OpenAiHarness(EngineHarness):
    model = ModelName("stand-in")
    requests_max = 4
    counts_tokens = False

    def __init__(self, upstream: StandInUpstream, folder: Path) -> None:
        self.upstream = upstream
        self.folder = folder

    def create(self) -> Engine:
        settings = EngineSettings(
            self.folder,
            endpoint=self.upstream.endpoint,
            requests_max=self.requests_max,
            engine_args=["--probe-seconds", "0.1"],
        )
        return create_engine("openai", settings)

    def body(self, case: Case) -> dict[str, Any]:
        match case:
            case Case.LENGTH:
                return {"messages": messages("hello"), "max_tokens": 3}
            case Case.LONG:
                self.upstream.scripts.append(scripts.endless)
            case Case.CONTEXT_OVERFLOW:
                self.upstream.scripts.append(scripts.CONTEXT_OVERFLOW)
            case Case.BUSY:
                self.upstream.scripts.append(scripts.BUSY)
            case Case.BREAKS_OFF:
                self.upstream.scripts.append(scripts.ERROR_THEN_DONE)
            case Case.DIES:
                self.upstream.scripts.append(scripts.DIES)
        return {"messages": messages("hello")}

    async def generating(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.upstream.generating

    def leftovers(self) -> list[str]:
        return ["connections"] if self.upstream.connections else []


class TestOpenAiEngine(EngineContract):
    @pytest.fixture(params=["http", "unix"])
    async def harness(
        self, request: pytest.FixtureRequest, short_folder: Path
    ) -> AsyncIterator[EngineHarness]:
        path = short_folder / "upstream.sock" if request.param == "unix" else None
        async with stand_in_upstream(scripts.answer(), path) as upstream:
            yield OpenAiHarness(upstream, short_folder)


class LlamaHarness(EngineHarness):
    model = ModelName("tiny")
    requests_max = 8

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> Engine:
        engine = create_engine("llama", EngineSettings(self.folder, requests_max=self.requests_max))
        assert isinstance(engine, llama.LlamaEngine)
        quick = RestartPolicy(delay_seconds=0.05)
        return llama.LlamaEngine(engine.plan, quick)

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

    def strike(self, case: Case) -> None:
        for child in self.children():
            os.kill(child.pid, signal.SIGKILL)

    def children(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process().children()
            if str(self.folder) in " ".join(command_line(child))
        ]

    async def generating(self) -> int:
        upstream = UnixUpstream(self.folder / "llama.sock")
        _, metrics = await ask_once(upstream, "/metrics")
        found = re.search(rb"requests_processing (\d+)", metrics)
        assert found is not None
        return int(found[1])

    def leftovers(self) -> list[str]:
        left = [f"process {child.pid}" for child in self.children()]
        return left + [str(path) for path in self.folder.glob("*.sock")]


class TestLlamaEngine(EngineContract):
    cases = frozenset(Case) - {Case.BUSY, Case.BREAKS_OFF}

    @pytest.fixture
    def harness(self, short_folder: Path) -> EngineHarness:
        return LlamaHarness(short_folder)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """pytest's own temporary folders are too deep for a Unix socket."""
    assert hasattr(socket, "AF_UNIX")
    with tempfile.TemporaryDirectory(prefix="aimo") as folder:
        yield Path(folder)
