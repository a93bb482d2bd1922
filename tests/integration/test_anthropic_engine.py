"""The anthropic engine against the stand-in for the Messages API: streamed, whole, in trouble."""

import datetime
import json
import math
import tempfile
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.domain.models import Feature, Health
from aimo_node.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import EngineRequest, EngineSettings
from aimo_node.testing import anthropic_upstream as scripts
from aimo_node.testing.anthropic_upstream import KEY, MODEL, exactly, giving, stand_in_messages
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import Pause, Whole
from providers.engines.anthropic_http import create

SAID = "".join(scripts.WORDS)
QUICK = ("--probe-seconds", "0.05")


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


@pytest.fixture
async def upstream():
    async with stand_in_messages() as served:
        yield served


def settings(folder, endpoint, *arguments, key=KEY, **more):
    key_file = folder / "key"
    key_file.write_text(f"{key}\n")
    key_file.chmod(0o600)
    more.setdefault("api_key_file", key_file if key else None)
    return EngineSettings(folder, endpoint=endpoint, engine_args=arguments, **more)


@asynccontextmanager
async def running(engine, ready=None):
    async with trio.open_nursery() as nursery:
        started = trio.Event()

        def tell_ready():
            started.set()
            if ready is not None:
                ready.append(engine.capabilities())

        nursery.start_soon(engine.run, tell_ready, lambda line: None)
        with trio.fail_after(30):
            await started.wait()
        yield engine
        nursery.cancel_scope.cancel()


def request(stream=True, model=MODEL, endpoint=Endpoint.CHAT, **fields):
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return EngineRequest(RequestId(uuid.uuid4().bytes), endpoint, ModelName(model), body, stream)


async def answer(engine, asked):
    sink = RecordingSink()
    with trio.fail_after(30):
        await engine.stream(asked, sink)
    return sink


async def failure(folder, endpoint, *arguments, **more):
    """Run an engine that cannot start; its sentence."""
    with trio.fail_after(30), pytest.raises(EngineStartFailed) as caught:
        await create(settings(folder, endpoint, *arguments, **more)).run(
            lambda: None, lambda line: None
        )
    return str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_is_whole_and_asked_for_in_the_apis_own_form(upstream, folder, stream):
    async with running(create(settings(folder, upstream.endpoint, "--beta", "b-1,b-2"))) as engine:
        sink = await answer(engine, request(stream, max_tokens=100, stop="END"))
    assert sink.written == SAID
    assert (sink.end.reason, sink.end.usage.completion_tokens) == (FinishReason.STOP, 7)
    (received,) = upstream.received
    assert received.path == "/v1/messages"
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert received.headers["anthropic-beta"] == "b-1,b-2"
    assert "authorization" not in received.headers
    assert received.body == {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "stop_sequences": ["END"],
        "stream": stream,
    }


@pytest.mark.parametrize("limit", [8_192, 8_193])
async def test_long_answer_is_streamed_by_the_api_and_put_together_here(upstream, folder, limit):
    """A whole answer would come after minutes of silence, in which connections are given up."""
    call = {"type": "tool_use", "id": "t1", "name": "get", "input": {"a": 1}}
    said = [{"type": "text", "text": "I look. "}, call]
    upstream.usual = giving(scripts.message(said, "tool_use"))
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        sink = await answer(engine, request(stream=False, max_tokens=limit))
    assert upstream.received[0].body["stream"] is (limit > 8_192)
    (choice,) = sink.choices
    message = choice["message"]
    assert message["content"] == "I look. "
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert sink.end.reason is FinishReason.TOOL_CALLS
    assert sink.end.usage == Usage(12, 34, 0)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (scripts.OVERLOADED_LATE, EngineFailed),
        (scripts.OVERLOADED_EARLY, Overloaded),
        (scripts.ENDS_SILENTLY, EngineFailed),
        (scripts.NO_MESSAGE_STOP, EngineFailed),
        (scripts.DIES, EngineFailed),
        (scripts.GARBAGE, EngineFailed),
        (scripts.BROKEN, EngineFailed),
        (exactly(Whole(200, b"{}")), EngineFailed),
        (exactly(b"data: " + b"x" * 1_100_000), EngineFailed),
        (scripts.error("authentication_error", f"bad {KEY}"), EngineFailed),
        (scripts.error("not_found_error", "model"), ModelNotFound),
        (scripts.error("invalid_request_error", "messages.0: no"), InvalidRequest),
        (scripts.CONTEXT_OVERFLOW, ContextLengthExceeded),
        (scripts.OVERLOADED, Overloaded),
    ],
    ids=[
        *("overloaded-late", "overloaded-early", "silent-end", "no-stop", "death", "garbage"),
        *("status-500", "not-a-stream", "endless-line", "status-401", "status-404", "status-400"),
        *("context", "status-529"),
    ],
)
async def test_every_failure_is_an_error_and_the_next_request_works(
    upstream, folder, script, error
):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(script)
        sink = RecordingSink()
        with trio.fail_after(30), pytest.raises(error) as caught:
            await engine.stream(request(), sink)
        assert sink.end is None
        assert KEY not in str(caught.value)
        assert (await answer(engine, request())).written == SAID


@pytest.mark.parametrize("script", [scripts.CONTEXT_OVERFLOW, scripts.OVERLOADED, scripts.BROKEN])
async def test_nothing_is_asked_twice(upstream, folder, script):
    """What was sent may have been carried out and billed."""
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(script)
        with pytest.raises((EngineFailed, Overloaded, ContextLengthExceeded)):
            await engine.stream(request(), RecordingSink())
    assert len(upstream.received) == 1


async def test_numbers_of_a_prompt_that_is_too_long_are_told(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(scripts.CONTEXT_OVERFLOW)
        with pytest.raises(ContextLengthExceeded, match="214315 tokens, the model takes 200000"):
            await engine.stream(request(), RecordingSink())


async def test_rate_limit_closes_the_model_until_it_is_over(upstream, folder):
    upstream.entries = [scripts.model_entry("a"), scripts.model_entry("b")]
    async with running(create(settings(folder, upstream.endpoint, model="*"))) as engine:
        upstream.scripts.append(scripts.RATE_LIMITED)
        with pytest.raises(Overloaded) as caught:
            await engine.stream(request(model="a"), RecordingSink())
        assert caught.value.retry_after_seconds == 7
        assert engine.load().load == 1.0
        with pytest.raises(Overloaded) as caught:
            await engine.stream(request(model="a"), RecordingSink())
        assert 0 < caught.value.retry_after_seconds <= 7
        assert len(upstream.received) == 1, "what would be refused is not even asked"
        await answer(engine, request(model="b"))


async def test_used_up_share_of_a_rate_limit_is_load(upstream, folder):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    upstream.limits = {
        "anthropic-ratelimit-input-tokens-limit": "1000",
        "anthropic-ratelimit-input-tokens-remaining": "250",
        "anthropic-ratelimit-input-tokens-reset": soon.isoformat(),
    }
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        assert engine.load().load == 0
        await answer(engine, request())
        assert engine.load().load == 0.75


async def test_tokens_are_counted_by_the_api_without_what_only_steers(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        asked = request(max_tokens=5, temperature=0.5, stop="x")
        counted = await engine.count_tokens(asked)
        sink = await answer(engine, asked)
        assert counted == sink.end.usage.prompt_tokens
        with pytest.raises(ModelNotFound):
            await engine.count_tokens(request(model="other"))
    count, _ = upstream.received
    assert count.path == "/v1/messages/count_tokens"
    assert count.body.keys() == {"model", "messages"}


async def test_models_are_offered_with_what_the_list_says(upstream, folder):
    upstream.entries = [scripts.model_entry("a"), scripts.model_entry("b"), {"id": "c"}]
    upstream.page_entries = 2
    async with running(create(settings(folder, upstream.endpoint, model="*"))) as engine:
        a, _, c = engine.capabilities().models
    assert (a.name, a.context_tokens, a.endpoints) == ("a", 200_000, (Endpoint.CHAT,))
    assert set(a.features) == {Feature.TOOLS, Feature.VISION, Feature.JSON_SCHEMA}
    assert (c.name, c.context_tokens, c.features) == ("c", 0, (Feature.TOOLS,))


async def test_models_have_the_names_the_owner_gives_them(upstream, folder):
    upstream.entries = [scripts.model_entry("claude-a"), scripts.model_entry("claude-b")]
    named = {"small": "claude-a", "large": "claude-b"}
    async with running(create(settings(folder, upstream.endpoint, models=named))) as engine:
        assert [model.name for model in engine.capabilities().models] == ["small", "large"]
        await answer(engine, request(model="large"))
        assert upstream.received[0].body["model"] == "claude-b"
        said = "claude-b takes no more than 8"
        upstream.scripts.append(scripts.error("invalid_request_error", said))
        with pytest.raises(InvalidRequest, match=r"^large takes no more than 8$"):
            await engine.stream(request(model="large"), RecordingSink())
        with pytest.raises(ModelNotFound):
            await engine.stream(request(model="claude-b"), RecordingSink())


async def test_what_a_model_can_decides_how_it_is_asked(upstream, folder):
    upstream.entries = [scripts.model_entry("budget"), scripts.adaptive_entry("adaptive")]
    async with running(create(settings(folder, upstream.endpoint, model="*"))) as engine:
        for name in ("budget", "adaptive"):
            asked = request(model=name, reasoning_effort="low", temperature=0.5, max_tokens=5_000)
            await answer(engine, asked)
    budget, adaptive = (received.body for received in upstream.received)
    assert budget["thinking"] == {"type": "enabled", "budget_tokens": 2_048}
    assert adaptive["thinking"] == {"type": "adaptive"}
    assert adaptive["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ((), {"temperature"}),
        (("--sampling", "drop"), set()),
        (("--api-version", "2026-10-21"), set()),
        (("--api-version", "2026-01-01"), {"temperature"}),
    ],
)
async def test_sampling_is_sent_where_the_api_takes_it(upstream, folder, arguments, sent):
    async with running(create(settings(folder, upstream.endpoint, *arguments))) as engine:
        await answer(engine, request(temperature=0.5))
    assert upstream.received[0].body.keys() & {"temperature"} == sent


async def test_what_is_left_out_is_logged_once(upstream, folder):
    with structlog.testing.capture_logs() as logs:
        async with running(create(settings(folder, upstream.endpoint))) as engine:
            for fields in ({"seed": 1}, {"seed": 2}, {"seed": 3, "min_p": 0.5}):
                await answer(engine, request(**fields))
    told = [log["fields"] for log in logs if log["event"] == "request.left_out"]
    assert told == [["seed"], ["min_p"]]


async def test_only_chat_is_served(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        for endpoint in (Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS):
            with pytest.raises(InvalidRequest, match="serves chat only"):
                await engine.stream(request(endpoint=endpoint), RecordingSink())


async def test_key_is_never_shown(upstream, folder, monkeypatch, capfd):
    """Not in an error, not in the engine's text form, not in a log; whatever the API quotes."""
    monkeypatch.setenv("UPSTREAM_KEY", KEY)
    by_name = settings(folder, upstream.endpoint, api_key_file=None, api_key_env="UPSTREAM_KEY")
    engine = create(by_name)
    with structlog.testing.capture_logs() as logs:
        async with running(engine):
            await answer(engine, request())
            for kind in (
                *("invalid_request_error", "authentication_error", "permission_error"),
                *("not_found_error", "request_too_large", "api_error", "overloaded_error"),
            ):
                upstream.scripts.append(scripts.error(kind, f"prompt is too long for {KEY}"))
                with pytest.raises(Exception, match=r"^(?!.*sk-ant)"):
                    await engine.stream(request(), RecordingSink())
            late = (*scripts.START, scripts.error_event("api_error", f"bad {KEY}"))
            upstream.scripts.append(exactly(*late))
            with pytest.raises(EngineFailed, match=r"^(?!.*sk-ant)"):
                await engine.stream(request(), RecordingSink())
    assert KEY not in repr(engine.__dict__)
    assert KEY not in str(logs) + "".join(capfd.readouterr())


@pytest.mark.parametrize(("key", "what"), [("wrong", "refuses the key"), ("", "wants a key")])
async def test_start_without_access_names_the_fix(upstream, folder, key, what):
    sentence = await failure(folder, upstream.endpoint, key=key)
    assert f"{what}: see --api-key-file" in sentence
    assert "wrong" not in sentence


async def test_model_that_is_not_there_is_refused_with_what_is(upstream, folder):
    sentence = await failure(folder, upstream.endpoint, model="claude-stand-on")
    assert "(did you mean claude-stand-in?); it offers claude-stand-in" in sentence


async def test_api_without_a_model_list_is_trusted(upstream, folder):
    upstream.entries = None
    async with running(create(settings(folder, upstream.endpoint, model="any"))) as engine:
        assert (await answer(engine, request(model="any"))).written == SAID
    assert "HTTP status 404" in await failure(folder, upstream.endpoint)


async def test_owner_may_correct_what_is_offered(upstream, folder):
    arguments = ("--context", "512", "--features", "tools", "--max-tokens", "77")
    async with running(create(settings(folder, upstream.endpoint, *arguments))) as engine:
        (model,) = engine.capabilities().models
        await answer(engine, request())
    assert (model.context_tokens, model.features) == (512, (Feature.TOOLS,))
    assert upstream.received[0].body["max_tokens"] == 77


@pytest.mark.parametrize(
    ("arguments", "more", "named"),
    [
        (("--features", "magic"), {}, "--features"),
        (("--api-version", "new"), {}, "--api-version"),
        (("--beta", "a b"), {}, "--beta"),
        (("--sampling", "maybe"), {}, "--sampling"),
        (("--ca-file", "/no.pem"), {}, "--ca-file"),
        ((), {"model": "*", "served_name": "x"}, "--served-name"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(folder, arguments, more, named):
    with pytest.raises(ConfigError, match=named):
        create(settings(folder, "https://localhost", *arguments, **more))


def test_endpoint_is_anthropics_own_unless_another_is_given(folder):
    assert create(settings(folder, ""))._plan.endpoint == "https://api.anthropic.com"


async def test_health_follows_the_api(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint, *QUICK))) as engine:
        assert engine.health() is Health.HEALTHY
        upstream.listing = scripts.OVERLOADED
        await eventually(lambda: engine.health() is Health.DEGRADED, "it is suspected")
        await eventually(lambda: engine.health() is Health.OFFLINE, "it is given up")
        upstream.listing = None
        await eventually(lambda: engine.health() is Health.HEALTHY, "it is back")
        upstream.listing = scripts.error("authentication_error", "revoked")
        await eventually(lambda: engine.health() is Health.OFFLINE, "a revoked key is an end too")


async def test_too_many_probes_are_no_sign_of_bad_health(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint, *QUICK))) as engine:
        upstream.listing = scripts.RATE_LIMITED
        probes = upstream.probes
        await eventually(lambda: upstream.probes > probes + 3, "it goes on probing")
        assert engine.health() is Health.HEALTHY


async def test_models_come_and_go_with_the_list(upstream, folder):
    told = []
    engine = create(settings(folder, upstream.endpoint, *QUICK, model="*"))
    async with running(engine, told):
        await eventually(lambda: upstream.probes > 3, "nothing is told while nothing changes")
        assert len(told) == 1
        upstream.entries = [scripts.model_entry("new")]
        await eventually(lambda: len(told) == 2, "ready is called again")
        assert [model.name for model in told[1].models] == ["new"]
        upstream.listing = exactly(Whole(200, b"<html>"))
        probes = upstream.probes
        await eventually(lambda: upstream.probes > probes + 1, "a list that is none")
        assert [model.name for model in engine.capabilities().models] == ["new"]
    assert len(told) == 2


@pytest.mark.alone
async def test_socket_is_closed_within_50_ms_of_cancelling(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(exactly(*scripts.START, Pause(math.inf)))
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request(), sink)
            await sink.first.wait()
            cancelled_at = trio.current_time()
            nursery.cancel_scope.cancel()
        await eventually(lambda: upstream.generating == 0, "the API is told")
        assert trio.current_time() - cancelled_at < 0.05


async def test_connection_is_used_again(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        for stream in (True, False, True):
            await answer(engine, request(stream, max_tokens=100))
    assert upstream.accepted == 1
