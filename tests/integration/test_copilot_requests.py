"""What the copilot engine sends, and where to: accounts of every kind, headers, secrets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from aimo_node.domain.ids import FinishReason
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.fake_github import (
    FakeGitHub,
    fake_github,
)
from aimo_node.testing.upstream import Whole
from providers.copilot.credentials import (
    CREDENTIAL_FILE,
    Credential,
    save_credential,
)
from providers.copilot.sites import AccountType
from providers.engines.copilot import CopilotEngine, create
from providers.http.client import HttpUpstream
from providers.http.upstream import Upstream
from tests.integration.copilot_engines import (
    answer,
    failure,
    log_in,
    logged_in,
    plan_of,
    request,
    running,
    start_failure,
)

SAID = "".join(scripts.WORDS)
CHAT = "/chat/completions"


@pytest.fixture
async def github() -> AsyncIterator[FakeGitHub]:
    async with fake_github() as served:
        yield served


def leading_to(github: FakeGitHub, roots: list[str]) -> Callable[[str, int], Upstream]:
    """Every address leads to the fake; which were meant is kept."""

    def connect(root: str, requests_max: int) -> Upstream:
        roots.append(root)
        return HttpUpstream(github.endpoint, requests_max=requests_max)

    return connect


@pytest.mark.parametrize(
    ("account_type", "domain", "announced", "expected"),
    [
        ("individual", "github.com", "", ["api.github.com", "api.githubcopilot.com"]),
        ("business", "github.com", "", ["api.github.com", "api.business.githubcopilot.com"]),
        ("enterprise", "github.com", "", ["api.github.com", "api.enterprise.githubcopilot.com"]),
        (
            "individual",
            "github.com",
            "https://api.business.githubcopilot.com",
            ["api.github.com", "api.business.githubcopilot.com"],
        ),
        ("enterprise", "corp.ghe.com", "", ["api.corp.ghe.com", "copilot-api.corp.ghe.com"]),
        (
            "enterprise",
            "corp.ghe.com",
            "https://copilot-api.eu.corp.ghe.com",
            ["api.corp.ghe.com", "copilot-api.eu.corp.ghe.com"],
        ),
    ],
)
async def test_every_kind_of_account_is_asked_where_it_is(
    github: FakeGitHub,
    tmp_path: Path,
    account_type: str,
    domain: str,
    announced: str,
    expected: list[str],
) -> None:
    github.announced_api = announced
    credential = Credential(github.grant_login(), AccountType(account_type), domain)
    save_credential(tmp_path / CREDENTIAL_FILE, credential)
    roots: list[str] = []
    engine = CopilotEngine(plan_of(tmp_path), connect=leading_to(github, roots))
    async with running(engine):
        await answer(engine)
    web = "corp.ghe.com" if "ghe" in domain else "github.com"
    assert roots == [f"https://{host}" for host in [web, *expected]]


async def test_an_account_that_is_moved_is_followed(github: FakeGitHub, tmp_path: Path) -> None:
    async with fake_github() as other:
        async with logged_in(github, tmp_path) as engine:
            await answer(engine)
            github.announced_api = other.endpoint
            github.revoke_tokens()
            other._valid = github._valid
            assert (await answer(engine)).written == SAID
        assert len(other.received) == 1


async def test_requests_carry_the_headers_copilot_wants(github: FakeGitHub, tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    user = {"role": "user", "content": "hello"}
    call = {"role": "assistant", "content": None, "tool_calls": []}
    result = {"role": "tool", "tool_call_id": "1", "content": "4"}
    async with logged_in(github, tmp_path) as engine:
        for messages in ([user], [user, call, result], [{"role": "user", "content": [image]}]):
            await answer(engine, request(messages=messages))
    plain, agent, vision = (received.headers for received in github.received)
    assert [one["x-initiator"] for one in (plain, agent, vision)] == ["user", "agent", "user"]
    assert "copilot-vision-request" not in plain
    assert vision["copilot-vision-request"] == "true"
    assert plain["editor-version"].startswith("vscode/")
    assert plain["x-request-id"] != agent["x-request-id"]


async def test_the_owner_can_name_another_editor(github: FakeGitHub, tmp_path: Path) -> None:
    log_in(github, tmp_path)
    arguments = ["--editor-version", "vscode/9.9", "--plugin-version", "copilot-chat/8.8"]
    engine = create(EngineSettings(tmp_path, engine_args=arguments, owner_only=True))
    async with running(engine):
        await answer(engine)
    for received in github.asked:
        assert received.headers["editor-version"] == "vscode/9.9"
        assert received.headers["editor-plugin-version"] == "copilot-chat/8.8"


async def test_an_answer_is_as_long_as_the_model_allows_unless_asked(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        await answer(engine)
        await answer(engine, request(max_tokens=3))
        await answer(engine, request(max_completion_tokens=5))
        await answer(engine, request(model="claude-test"))
    limits = [received.body.get("max_tokens") for received in github.received]
    assert limits == [16_000, 3, None, None]


async def test_text_and_tool_calls_of_a_whole_answer_come_as_one_choice(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """Asked for a whole answer, Copilot splits those of some models over several choices."""
    function = {"name": "add", "arguments": '{"a": 3}'}
    call = {"index": 0, "id": "1", "type": "function", "function": function}
    script = scripts.exactly(
        scripts.text("Let me add."),
        scripts.chunk({"tool_calls": [call]}),
        scripts.chunk({}, "tool_calls"),
        scripts.usage(7, 5),
        scripts.DONE,
    )
    async with logged_in(github, tmp_path) as engine:
        github.scripts.append(script)
        sink = await answer(engine, request(stream=False))
    (choice,) = sink.choices
    assert choice["message"]["content"] == "Let me add."
    assert choice["message"]["tool_calls"][0]["function"] == function
    assert sink.end is not None
    assert sink.end.reason is FinishReason.TOOL_CALLS
    assert sink.end.usage.prompt_tokens == 7
    assert github.received[0].body["stream"] is True


def modes(folder: Path) -> list[tuple[Path, int]]:
    return [(path, path.stat().st_mode) for path in folder.iterdir()]


async def test_no_secret_is_in_logs_errors_or_names(github: FakeGitHub, tmp_path: Path) -> None:
    """Not even when GitHub itself quotes them."""
    told: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with logged_in(github, tmp_path, probe_every_seconds=0.05) as engine:
            told += [repr(engine), str(engine.capabilities()), repr(engine._plan)]
            token = github.copilot_tokens[0]
            for status in (402, 403):
                quoted = json.dumps({"message": f"{token} and {github.github_tokens[0]}"})
                github.scripts.append(scripts.exactly(Whole(status, quoted.encode())))
                told.append((await failure(engine)).message.replace(github.github_tokens[0], ""))
            quoted = json.dumps({"message": f"bad token {github.github_tokens[0]}"})
            github.token_answers.extend([Whole(403, quoted.encode())] * 2)
            github.revoke_tokens()
            error: BaseException | None = await failure(engine)
            while error is not None:
                told.append(f"{error!r} {error}")
                error = error.__cause__ or error.__context__
            await eventually(lambda: bool(logs), "something is logged")
    told.append(json.dumps(logs, default=str))
    assert "token_failed" in told[-1]
    secrets = [*github.copilot_tokens, *github.github_tokens]
    assert [text for text in told for secret in secrets if secret in text] == []
    assert [(path.name, stat.S_IMODE(mode)) for path, mode in modes(tmp_path)] == [
        (CREDENTIAL_FILE, 0o600)
    ]


async def test_a_chat_does_not_send_githubs_token_to_copilot(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        await answer(engine)
    for received in github.asked:
        if received.path in {CHAT, "/models"}:
            assert github.github_tokens[0] not in str(received)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
async def test_a_login_that_is_somebody_elses_is_not_used(
    github: FakeGitHub, tmp_path: Path
) -> None:
    os.chown(log_in(github, tmp_path), 12345, -1)
    assert "another user" in await start_failure(CopilotEngine(plan_of(tmp_path)))
    assert github.asked == []
