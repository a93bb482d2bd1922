"""The anthropic engine passes the public suite, against the stand-in for the Messages API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.testing import anthropic_upstream as scripts
from aimo_node.testing.anthropic_upstream import StandInMessages, stand_in_messages
from aimo_node.testing.engine_contract import Case, EngineContract, EngineHarness
from providers.registry import create_engine

SCRIPTS = {
    Case.LONG: scripts.endless,
    Case.CONTEXT_OVERFLOW: scripts.CONTEXT_OVERFLOW,
    Case.BUSY: scripts.OVERLOADED,
    Case.BREAKS_OFF: scripts.OVERLOADED_LATE,
    Case.DIES: scripts.DIES,
}


class AnthropicHarness(EngineHarness):
    model = ModelName(scripts.MODEL)
    requests_max = 4

    def __init__(self, upstream: StandInMessages, folder: Path) -> None:
        self.upstream = upstream
        self.folder = folder
        self.key_file = folder / "key"
        self.key_file.write_text(scripts.KEY)
        self.key_file.chmod(0o600)

    def create(self) -> Engine:
        settings = EngineSettings(
            self.folder,
            model=self.model,
            endpoint=self.upstream.endpoint,
            requests_max=self.requests_max,
            api_key_file=self.key_file,
            engine_args=["--probe-seconds", "0.1"],
        )
        return create_engine("anthropic", settings)

    def body(self, case: Case) -> dict[str, Any]:
        if case in SCRIPTS:
            self.upstream.scripts.append(SCRIPTS[case])
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
        return body | ({"max_tokens": 3} if case is Case.LENGTH else {})

    async def generating(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.upstream.generating

    def leftovers(self) -> list[str]:
        return ["connections"] if self.upstream.connections else []


class TestAnthropicEngine(EngineContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[EngineHarness]:
        async with stand_in_messages() as upstream:
            yield AnthropicHarness(upstream, tmp_path)
