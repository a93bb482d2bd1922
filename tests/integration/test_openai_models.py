"""Several models of one upstream, under other names, coming and going."""

import json

import pytest

from aimo_node.domain.ids import Endpoint
from aimo_node.errors import ConfigError, InvalidRequest, ModelNotFound
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.upstream import Whole, stand_in_upstream
from aimo_node.testing.upstream_scripts import DONE, chunk, exactly, models
from providers.engines.openai_http import create
from tests.integration.openai_calls import (
    answer,
    embed,
    failure,
    refused,
    request,
    running,
    settings,
)

SAID = "".join(scripts.WORDS)
QUICK = ("--probe-seconds", "0.05")


@pytest.fixture
async def upstream():
    async with stand_in_upstream(scripts.answer()) as served:
        served.models = models("own-large", "own-small")
        yield served


def names(engine):
    return [model.name for model in engine.capabilities().models]


async def test_requests_reach_the_model_their_name_stands_for(upstream, tmp_path):
    wanted = {"large": "own-large", "small": "own-small"}
    engine = create(settings(tmp_path, upstream.endpoint, models=wanted))
    async with running(engine):
        assert names(engine) == ["large", "small"]
        assert (await answer(engine, request(model="small"))).written == SAID
        assert (await answer(engine, request(model="large", stream=False))).written == SAID
        await refused(engine, request(model="own-small"), ModelNotFound)
        await refused(engine, request(model="medium"), ModelNotFound)
    assert [received.body["model"] for received in upstream.received] == ["own-small", "own-large"]


async def test_upstreams_name_is_never_shown(upstream, tmp_path):
    """It stands in every chunk, in vectors' answers and in error messages."""
    engine = create(settings(tmp_path, upstream.endpoint, models={"ours": "own-large"}))
    async with running(engine):
        named = {"model": "own-large", "choices": [{"index": 0, "delta": {"content": "hi"}}]}
        logprobs = chunk({"content": "x", "reasoning_content": "y"}, "stop")
        upstream.scripts.append(exactly(scripts.event(named), logprobs, DONE))
        told = [await answer(engine, request(model="ours"))]
        upstream.scripts.append(scripts.embeddings())
        told.append(await answer(engine, embed("a", model="ours")))
        assert "own-large" not in str([sink.parts for sink in told])
        sentence = "own-large does not take temperature"
        for fields in ({"message": sentence}, {"message": f"no: `{sentence}`"}):
            upstream.scripts.append(scripts.refusal(400, **fields))
            error = await refused(engine, request(model="ours"), InvalidRequest)
            assert "own-large" not in error.message
            assert "ours does not take temperature" in error.message


async def test_star_takes_every_model(upstream, tmp_path):
    engine = create(settings(tmp_path, upstream.endpoint, model="*"))
    async with running(engine):
        assert names(engine) == ["own-large", "own-small"]
        await answer(engine, request(model="own-small"))
    assert upstream.received[0].body["model"] == "own-small"
    with pytest.raises(ConfigError, match="--models"):
        create(settings(tmp_path, upstream.endpoint, model="*", served_name="x"))


async def test_new_models_appear_and_gone_ones_vanish_with_a_word_each_time(upstream, tmp_path):
    told = []
    engine = create(settings(tmp_path, upstream.endpoint, *QUICK, model="*"))
    async with running(engine, lambda: told.append(names(engine))):
        upstream.models = models("own-small", "own-tiny")
        await eventually(lambda: len(told) == 2, "the change is told")
        assert (await answer(engine, request(model="own-tiny"))).written == SAID
        await refused(engine, request(model="own-large"), ModelNotFound)
        upstream.models = models()
        await eventually(lambda: len(told) == 3, "nothing is left")
        upstream.models = models("own-large")
        await eventually(lambda: len(told) == 4, "one is back")
        asked = upstream.lists
        await eventually(lambda: upstream.lists >= asked + 3, "the list is asked for again")
    assert told == [["own-large", "own-small"], ["own-small", "own-tiny"], [], ["own-large"]]


async def test_list_that_fails_for_a_while_takes_nothing_away(upstream, tmp_path):
    told = []
    engine = create(settings(tmp_path, upstream.endpoint, *QUICK, model="*"))
    async with running(engine, lambda: told.append(names(engine))):
        for useless in (scripts.refusal(403), scripts.BROKEN, scripts.exactly(b"<html>"), None):
            upstream.models = useless
            asked = upstream.lists
            await eventually(lambda then=asked: upstream.lists >= then + 3, "it is asked again")
        assert names(engine) == ["own-large", "own-small"]
        assert (await answer(engine, request(model="own-small"))).written == SAID
    assert len(told) == 1


async def test_every_named_model_has_to_be_there_at_the_start(upstream, tmp_path):
    sentence = await failure(
        tmp_path, upstream.endpoint, models={"a": "own-large", "b": "own-smal"}
    )
    assert "'own-smal' (did you mean own-small?); it offers own-large, own-small" in sentence


async def test_named_models_of_an_upstream_without_a_list_are_trusted(upstream, tmp_path):
    upstream.models = None
    engine = create(settings(tmp_path, upstream.endpoint, models={"a": "x", "b": "y"}))
    async with running(engine):
        await answer(engine, request(model="b"))
    assert upstream.received[0].body["model"] == "y"
    assert "HTTP status 404" in await failure(tmp_path, upstream.endpoint, model="*")


async def test_context_of_each_model_is_its_own(upstream, tmp_path):
    upstream.models = models({"id": "a", "max_model_len": 100}, {"id": "b", "context_window": 7})
    engine = create(settings(tmp_path, upstream.endpoint, model="*"))
    async with running(engine):
        context = {model.name: model.context_tokens for model in engine.capabilities().models}
    assert context == {"a": 100, "b": 7}


async def test_what_only_other_dialects_need_does_not_reach_the_upstream(upstream, tmp_path):
    """Strict servers refuse fields they do not know."""
    engine = create(settings(tmp_path, upstream.endpoint, model="own-small"))
    async with running(engine):
        await answer(engine, request(model="own-small", aimo={"thinking": []}, top_k=5))
    (received,) = upstream.received
    assert received.body.keys() == {"messages", "model", "stream", "stream_options", "top_k"}


@pytest.mark.parametrize("stream", [True, False])
async def test_reasoning_travels_beside_the_text(upstream, tmp_path, stream):
    thought = {"reasoning_content": "let me see"}
    whole = {"choices": [{"message": thought | {"content": "4"}, "finish_reason": "stop"}]}
    upstream.scripts.append(
        exactly(chunk(thought), scripts.text("4"), chunk({}, "stop"), DONE)
        if stream
        else exactly(Whole(200, json.dumps(whole).encode()))
    )
    engine = create(settings(tmp_path, upstream.endpoint, model="own-small"))
    async with running(engine):
        sink = await answer(engine, request(stream=stream, model="own-small"))
    (choice,) = sink.choices
    assert choice["delta" if stream else "message"]["reasoning_content"] == "let me see"
    assert sink.written == ("4" if stream else "")


async def test_chunks_are_counted_where_the_upstream_reports_no_usage(upstream, tmp_path):
    upstream.scripts.append(exactly(scripts.text("a"), scripts.text("b"), chunk({}, "stop"), DONE))
    engine = create(settings(tmp_path, upstream.endpoint, model="own-small"))
    async with running(engine):
        usage = (await answer(engine, request(model="own-small"))).end.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 2)


@pytest.mark.parametrize("arguments", [("--endpoints", "video"), ("--endpoints", "")])
def test_unknown_endpoint_is_a_configuration_error(tmp_path, arguments):
    with pytest.raises(ConfigError, match="--endpoints"):
        create(settings(tmp_path, "http://localhost", *arguments))


async def test_completions_can_be_all_that_is_served(upstream, tmp_path):
    arguments = ("--endpoints", "completions")
    engine = create(settings(tmp_path, upstream.endpoint, *arguments, model="own-small"))
    async with running(engine):
        upstream.scripts.append(
            exactly(scripts.event({"choices": [{"text": "x", "finish_reason": "stop"}]}), DONE)
        )
        asked = request(model="own-small", endpoint=Endpoint.COMPLETIONS)
        assert (await answer(engine, asked)).written == "x"
        await refused(engine, request(model="own-small"), InvalidRequest)
