"""Copilot engines that run against a GitHub on loopback, and what is asked of them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, ModelName, RequestId
from aimo_node.errors import (
    CodedError,
    EngineFailed,
    EngineStartFailed,
)
from aimo_node.ports.engine import EngineRequest
from aimo_node.testing.fake_github import (
    FakeGitHub,
)
from aimo_node.testing.recording_sink import RecordingSink
from providers.copilot.credentials import (
    CREDENTIAL_FILE,
    Credential,
    save_credential,
)
from providers.engines.copilot import CopilotEngine, CopilotPlan


def log_in(github: FakeGitHub, folder: Path) -> Path:
    path = folder / CREDENTIAL_FILE
    save_credential(path, Credential(github.grant_login(), github_url=github.endpoint))
    return path


def plan_of(folder: Path, **changes: Any) -> CopilotPlan:
    return replace(CopilotPlan(folder, start_seconds=5, probe_every_seconds=3600), **changes)


@asynccontextmanager
async def running(engine: CopilotEngine) -> AsyncIterator[CopilotEngine]:
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda _line, _state=None: None)
        with trio.fail_after(30):
            await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def logged_in(
    github: FakeGitHub, folder: Path, **changes: Any
) -> AsyncIterator[CopilotEngine]:
    log_in(github, folder)
    async with running(CopilotEngine(plan_of(folder, **changes))) as engine:
        yield engine


def request(stream: bool = True, model: str = "gpt-test", **fields: Any) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), Endpoint.CHAT, ModelName(model), body, stream
    )


async def answer(engine: CopilotEngine, asked: EngineRequest | None = None) -> RecordingSink:
    sink = RecordingSink()
    with trio.fail_after(30):
        await engine.stream(asked or request(), sink)
    assert isinstance(sink.end, Finish)
    return sink


async def failure(engine: CopilotEngine, kind: type[CodedError] = EngineFailed) -> CodedError:
    sink = RecordingSink()
    with trio.fail_after(30), pytest.raises(kind) as caught:
        await engine.stream(request(), sink)
    assert sink.end is None
    return caught.value


async def start_failure(engine: CopilotEngine) -> str:
    with trio.fail_after(30), pytest.raises(EngineStartFailed) as caught:
        await engine.run(lambda: None, lambda _line, _state=None: None)
    return str(caught.value)
