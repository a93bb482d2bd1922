"""The copilot engine passes the public suite, against a GitHub on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import Case, EngineContract, EngineHarness
from aimo_node.testing.fake_github import FakeGitHub, fake_github
from providers.copilot.credentials import CREDENTIAL_FILE, Credential, save_credential
from providers.registry import create_engine


class CopilotHarness(EngineHarness):
    model = ModelName("gpt-test")
    requests_max = 4
    counts_tokens = False

    def __init__(self, github: FakeGitHub, folder: Path) -> None:
        self.github = github
        self.folder = folder
        credential = Credential(github.grant_login(), github_url=github.endpoint)
        save_credential(folder / CREDENTIAL_FILE, credential)

    def create(self) -> Engine:
        settings = EngineSettings(
            self.folder,
            requests_max=self.requests_max,
            engine_args=["--probe-seconds", "0.1"],
            owner_only=True,
        )
        return create_engine("copilot", settings)

    def body(self, case: Case) -> dict[str, Any]:
        script = {
            Case.LONG: scripts.endless,
            Case.CONTEXT_OVERFLOW: scripts.CONTEXT_OVERFLOW,
            Case.BUSY: scripts.BUSY,
            Case.BREAKS_OFF: scripts.ERROR_THEN_DONE,
            Case.DIES: scripts.DIES,
        }.get(case)
        if script is not None:
            self.github.scripts.append(script)
        limit = {"max_tokens": 3} if case is Case.LENGTH else {}
        return {"messages": [{"role": "user", "content": "hello"}], **limit}

    async def generating(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.github.generating

    def leftovers(self) -> list[str]:
        return ["connections"] if self.github.connections else []


class TestCopilotEngine(EngineContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[EngineHarness]:
        async with fake_github() as github:
            yield CopilotHarness(github, tmp_path)
