"""The copilot engine against a GitHub on loopback: login, token, refusals, headers, secrecy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.domain.models import Feature, Health
from aimo_node.errors import (
    CodedError,
    ConfigError,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.fake_github import (
    NO_COPILOT,
    NO_QUOTA,
    NO_SUBSCRIPTION,
    UNAVAILABLE,
    FakeGitHub,
    fake_github,
)
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import Whole
from providers.copilot import tokens
from providers.copilot.credentials import (
    CREDENTIAL_FILE,
    remove_credential,
)
from providers.copilot.tokens import Moment, read_clocks
from providers.engines.copilot import CopilotEngine, create
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
TOKEN = "/copilot_internal/v2/token"


@pytest.fixture
async def github() -> AsyncIterator[FakeGitHub]:
    async with fake_github() as served:
        yield served


async def test_models_that_can_chat_are_served_to_the_owner_only(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        offered = engine.capabilities()
        assert offered.owner_only is True
        assert [(model.name, model.context_tokens) for model in offered.models] == [
            ("gpt-test", 80_000),
            ("claude-test", 90_000),
        ]
        assert Feature.VISION in offered.models[0].features
        assert (await answer(engine)).written == SAID
        assert (await answer(engine, request(model="claude-test"))).written == SAID
        with pytest.raises(ModelNotFound):
            await engine.stream(request(model="embedding-test"), RecordingSink())
    assert github.received[1].body["model"] == "claude-test"


@pytest.mark.parametrize("wanted", [{"gpt-test": "gpt-test"}, {"mine": "gpt-test"}])
async def test_only_the_models_that_were_asked_for_are_served_under_their_names(
    github: FakeGitHub, tmp_path: Path, wanted: dict[str, str]
) -> None:
    (name,) = wanted
    async with logged_in(github, tmp_path, wanted=wanted) as engine:
        assert [model.name for model in engine.capabilities().models] == [name]
        assert (await answer(engine, request(model=name))).written == SAID
    assert github.received[0].body["model"] == "gpt-test"


async def test_a_model_that_is_not_there_names_those_that_are(
    github: FakeGitHub, tmp_path: Path
) -> None:
    log_in(github, tmp_path)
    engine = CopilotEngine(plan_of(tmp_path, wanted={"gpt-tast": "gpt-tast"}))
    sentence = await start_failure(engine)
    assert "did you mean gpt-test" in sentence
    assert "claude-test" in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owner_only": False}, "never offered to a mesh: run it with `aimo up"),
        ({"endpoint": "https://api.example.com"}, "takes no --endpoint"),
        ({"api_key_file": Path("key")}, "takes no --endpoint"),
        ({"api_key_env": "KEY"}, "takes no --endpoint"),
        ({"served_name": "mine"}, "--served-name needs --model"),
        ({"engine_args": ["--editor-versoin", "x"]}, "did you mean --editor-version"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    settings = EngineSettings(tmp_path, **{"owner_only": True, **changes})
    with pytest.raises(ConfigError, match=words) as caught:
        create(settings)
    assert "\n" not in str(caught.value)


async def test_without_a_login_the_engine_says_how_to_log_in(tmp_path: Path) -> None:
    sentence = await start_failure(create(EngineSettings(tmp_path, owner_only=True)))
    assert "aimo auth copilot" in sentence


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (NO_SUBSCRIPTION, "no Copilot subscription.*logged in as octocat"),
        (NO_COPILOT, "no Copilot for the account"),
        (Whole(401, b'{"message": "Bad credentials"}'), "aimo auth copilot"),
    ],
)
async def test_an_account_that_may_not_is_told_at_once(
    github: FakeGitHub, tmp_path: Path, refusal: Whole, words: str
) -> None:
    log_in(github, tmp_path)
    github.token_answers.extend([refusal] * 3)
    assert words.partition(".*")[0] in await start_failure(CopilotEngine(plan_of(tmp_path)))
    assert len(github.token_answers) == 2, "asking again would not help"


async def test_a_github_that_is_away_at_the_start_is_waited_for(
    github: FakeGitHub, tmp_path: Path
) -> None:
    github.token_answers.append(UNAVAILABLE)
    async with logged_in(github, tmp_path) as engine:
        assert engine.health() is Health.HEALTHY
    log_in(github, tmp_path)
    github.token_answers.extend([UNAVAILABLE] * 3)
    sentence = await start_failure(CopilotEngine(plan_of(tmp_path, start_seconds=0.3)))
    assert "503" in sentence


async def test_a_refused_token_is_replaced_once_and_the_request_sent_again(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        github.revoke_tokens()
        asked = request()
        assert (await answer(engine, asked)).written == SAID
        assert len(github.copilot_tokens) == 2
        chats = [received for received in github.asked if received.path == CHAT]
        assert [chat.headers["authorization"] for chat in chats] == [
            f"Bearer {token}" for token in github.copilot_tokens
        ]
        assert chats[0].body == chats[1].body
        assert engine.health() is Health.HEALTHY


async def test_many_requests_with_a_refused_token_make_one_refresh(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        github.revoke_tokens()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(answer, engine)
        assert len(github.copilot_tokens) == 2


async def test_a_token_refused_twice_is_an_error_and_no_storm(
    github: FakeGitHub, tmp_path: Path
) -> None:
    async with logged_in(github, tmp_path) as engine:
        for _ in range(2):
            github.scripts.append(scripts.exactly(Whole(401, b"unauthorized\n")))
        await failure(engine)
        assert len(github.copilot_tokens) == 2
        assert len(github.received) == 2, "sent twice, not three times"
        for _ in range(20):
            await failure(engine)
        assert len(github.copilot_tokens) == 2, "no further token before a pause"
        assert engine.health() is Health.OFFLINE
        await eventually(lambda: engine.health() is Health.HEALTHY, "it is tried again")
        assert (await answer(engine)).written == SAID


async def test_after_the_machine_has_slept_the_token_is_replaced_before_the_next_request(
    github: FakeGitHub, tmp_path: Path
) -> None:
    asleep_seconds = 0.0

    def clocks() -> Moment:
        now = read_clocks()
        return Moment(now.wall + asleep_seconds, now.steady)

    log_in(github, tmp_path)
    async with running(CopilotEngine(plan_of(tmp_path), clocks=clocks)) as engine:
        await answer(engine)
        asleep_seconds = 8 * 3600.0
        github.revoke_tokens()  # by now they have expired at GitHub too
        assert (await answer(engine)).written == SAID
        assert len(github.copilot_tokens) == 2
    assert github.paths()[-3:] == [CHAT, TOKEN, CHAT]
    assert github.paths().count(CHAT) == 2, "the old token was not even tried"


async def test_a_refresh_that_fails_degrades_and_is_tried_again(
    github: FakeGitHub, tmp_path: Path
) -> None:
    github.refresh_seconds = 1  # so it is due five seconds on, by this machine's steady clock
    aged_seconds = 0.0

    def clocks() -> Moment:
        now = read_clocks()
        return Moment(now.wall + aged_seconds, now.steady + aged_seconds)

    log_in(github, tmp_path)
    async with running(CopilotEngine(plan_of(tmp_path), clocks=clocks)) as engine:
        github.token_answers.extend([UNAVAILABLE, Whole(200, b"<html>login</html>")])
        aged_seconds = 10.0
        await eventually(lambda: engine.health() is Health.DEGRADED, "the failure shows")
        assert (await answer(engine)).written == SAID, "the token there is is still good"
        github.refresh_seconds = 1500
        await eventually(lambda: engine.health() is Health.HEALTHY, "the timer lives on")
        assert not github.token_answers, "both failures were met"
        assert len(github.copilot_tokens) == 2


async def test_logging_out_and_in_again_heals_a_running_engine(
    github: FakeGitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "BACK_OFF_SECONDS_MAX", 0.2)
    async with logged_in(github, tmp_path) as engine:
        github.github_tokens.clear()  # revoked in GitHub's settings
        github.revoke_tokens()
        assert "aimo auth copilot" in (await failure(engine)).message
        assert engine.health() is Health.OFFLINE
        remove_credential(tmp_path / CREDENTIAL_FILE)
        log_in(github, tmp_path)
        await eventually(lambda: engine.health() is Health.HEALTHY, "the new login is found")
        assert (await answer(engine)).written == SAID


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        (NO_QUOTA, EngineFailed, "aimo check-usage"),
        (Whole(403, b'{"message": "not for you"}'), EngineFailed, "not for you"),
        (Whole(429, b"", {"retry-after": "30"}), Overloaded, "busy"),
        (Whole(500, b"boom"), EngineFailed, "500"),
        (Whole(400, b'{"error": {"message": "model_not_supported"}}'), InvalidRequest, "model_not"),
    ],
)
async def test_each_refusal_of_copilot_has_its_sentence(
    github: FakeGitHub, tmp_path: Path, refusal: Whole, kind: type[CodedError], words: str
) -> None:
    async with logged_in(github, tmp_path) as engine:
        github.scripts.append(scripts.exactly(refusal))
        error = await failure(engine, kind)
        assert words in error.message
        if refusal.status == 429:
            assert error.retry_after_seconds == 30
        assert len(github.received) == 1, "nothing but 401 is tried again"
        assert len(github.copilot_tokens) == 1
        assert (await answer(engine)).written == SAID


async def test_copilot_gone_and_back_shows_in_health(github: FakeGitHub, tmp_path: Path) -> None:
    async with logged_in(github, tmp_path, probe_every_seconds=0.05) as engine:
        gone, github.catalogue = github.catalogue, ()
        await eventually(lambda: engine.health() is Health.DEGRADED, "a probe failed")
        await eventually(lambda: engine.health() is Health.OFFLINE, "six probes failed")
        github.catalogue = gone
        await eventually(lambda: engine.health() is Health.HEALTHY, "a probe succeeded")


async def test_a_failed_request_is_followed_by_a_probe(github: FakeGitHub, tmp_path: Path) -> None:
    async with logged_in(github, tmp_path) as engine:
        github.catalogue = ()
        github.scripts.append(scripts.DIES)
        await failure(engine)
        await eventually(lambda: engine.health() is Health.DEGRADED, "long before the next probe")


async def test_new_models_are_offered_without_a_restart(github: FakeGitHub, tmp_path: Path) -> None:
    log_in(github, tmp_path)
    engine = CopilotEngine(plan_of(tmp_path, probe_every_seconds=0.05))
    told: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            engine.run,
            lambda: told.append(len(engine.capabilities().models)),
            lambda _line, _state=None: None,
        )
        await eventually(lambda: told == [2], "ready")
        github.catalogue = [*github.catalogue, {"id": "new", "capabilities": {"type": "chat"}}]
        await eventually(lambda: told == [2, 3], "ready again")
        nursery.cancel_scope.cancel()
