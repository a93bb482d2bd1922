"""The OpenAI SDK as anybody installs it, against an edge three processes from a model."""

import asyncio  # noqa: TID251 (what users of the SDK's asynchronous half run it on)
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.e2e.conftest import SharedMesh
from tests.e2e.http_client import echo_text

QUESTION = "one two three"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}},
                "required": ["place"],
            },
        },
    }
]


@pytest.fixture
def client(shared: SharedMesh) -> Iterator[openai.OpenAI]:
    """No retries: an error must not be hidden by a second try."""
    with openai.OpenAI(base_url=f"{shared.edge.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_sdk_gets_a_whole_answer_with_usage(client):
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=5)
    assert answer.object == "chat.completion"
    assert answer.model == "echo"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == echo_text(QUESTION, 5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
    }
    assert answer.usage.total_tokens == 8


def test_sdk_streams_tokens_in_order(client):
    chunks = list(
        client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=50, stream=True)
    )
    assert text_of(chunks) == echo_text(QUESTION, 50)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"echo"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_sdk_gets_usage_in_a_last_chunk_if_it_asks(client):
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=MESSAGES,
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert text_of(chunks) == echo_text(QUESTION, 4)


def test_sdk_may_send_tools_and_other_parameters(client):
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=[{"role": "system", "content": "Be short."}, *MESSAGES],
            tools=TOOLS,
            tool_choice="auto",
            parallel_tool_calls=False,
            temperature=0.2,
            top_p=0.9,
            seed=1,
            stop=["never"],
            max_completion_tokens=4,
            stream=True,
        )
    )
    assert text_of(chunks) == echo_text(QUESTION, 4)


def test_async_sdk_streams_as_well(shared):
    async def ask() -> tuple[str, str]:
        url = f"{shared.edge.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="echo", messages=MESSAGES, max_tokens=20, stream=True
            )
            chunks = [chunk async for chunk in stream]
            whole = await client.chat.completions.create(
                model="echo", messages=MESSAGES, max_tokens=3
            )
            return text_of(chunks), whole.choices[0].message.content

    assert asyncio.run(ask()) == (echo_text(QUESTION, 20), echo_text(QUESTION, 3))


def test_unknown_model_is_not_found_and_names_the_field(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody-has-this", messages=MESSAGES)
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"
    assert "nobody-has-this" in caught.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_bad_body_is_refused_with_the_path_of_the_field(client, change, param):
    request = {"model": "echo", "messages": MESSAGES} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**request)
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_engine_that_refuses_does_so_with_a_proper_status(client, stream):
    """Also for a stream, since its head waits for the first part."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="echo", messages=MESSAGES, stream=stream, extra_body={"aimo": {"delay_ms": -1}}
        )
    assert caught.value.param == "aimo.delay_ms"


def test_sdk_lists_models_and_finds_one(client):
    assert "echo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody-has-this")
    assert caught.value.code == "model_not_found"


def test_sdk_reads_the_request_id(client, shared):
    raw = client.chat.completions.with_raw_response.create(
        model="echo", messages=MESSAGES, max_tokens=1
    )
    assert len(raw.request_id) == 32
    assert raw.headers["x-aimo-request-id"] == raw.request_id
    assert raw.headers["x-aimo-provider"] == shared.provider.peer_id


def test_a_large_prompt_arrives_whole(client):
    """Over 16 KiB a body travels in pieces, under credit."""
    words = " ".join(f"word{number}" for number in range(40_000))
    answer = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": words}], max_tokens=39_999
    )
    assert answer.usage.prompt_tokens == 40_000
    assert answer.choices[0].message.content == echo_text(words, 39_999)


def test_leaving_the_sdk_stream_early_keeps_the_connection_usable(client, shared):
    for _ in range(3):
        stream = client.chat.completions.create(
            model="echo", messages=MESSAGES, max_tokens=10_000, stream=True
        )
        next(iter(stream))
        stream.close()
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1)
    assert answer.choices[0].message.content == "one "
