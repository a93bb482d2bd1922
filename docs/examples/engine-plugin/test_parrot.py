"""The parrot keeps every promise of the engine port."""

from pathlib import Path
from typing import Any

import parrot
import pytest
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.testing.engine_contract import Case, EngineContract, EngineHarness


class ParrotHarness(EngineHarness):
    """How to make a parrot, and what to ask it to bring it into each case."""

    model = ModelName("parrot")
    requests_max = 4

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine | None = None

    def create(self) -> Engine:
        """A parrot that has not been started."""
        self.engine = parrot.create(EngineSettings(self.folder, requests_max=self.requests_max))
        return self.engine

    def body(self, case: Case) -> dict[str, Any]:
        """What to ask."""
        text = "a few words " * (500 if case is Case.LONG else 2)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        return body | {"max_tokens": 3} if case is Case.LENGTH else body

    async def generating(self) -> int:
        """By the parrot's own account; an engine with a process asks that."""
        await trio.lowlevel.checkpoint()
        return self.engine.load().running if self.engine else 0

    def leftovers(self) -> list[str]:
        """Processes, sockets and the like; here there can only be requests."""
        return ["requests"] if self.engine and self.engine.load().running else []


class TestParrot(EngineContract):
    """Cases that this engine cannot be brought into are left out."""

    cases = frozenset({Case.SHORT, Case.LENGTH, Case.LONG})

    @pytest.fixture
    def harness(self, tmp_path: Path) -> EngineHarness:
        """Made anew for each test."""
        return ParrotHarness(tmp_path)
