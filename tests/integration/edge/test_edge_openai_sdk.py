"""The unmodified OpenAI SDK against the edge on a real port."""

from __future__ import annotations

import json
import sys

import openai
import pytest
import trio

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import ContextLengthExceeded, Overloaded, StreamInterrupted
from aimo_node.testing.fake_door import FAKE_PEER, Pause, words

# the SDK was written for asyncio, which closes forgotten generators without a word; trio warns
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator '(httpx2|httpcore2|openai)\\.:ResourceWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in.*(Response|PoolByteStream|AsyncStream|SSE|Connection)"
        ":pytest.PytestUnraisableExceptionWarning"
    ),
]

MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT = "It is 7 ☀ “quoted” \U0001f600\u2028 end"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "strict": True,
        },
    }
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


@pytest.fixture
def client(edge):
    """The synchronous client; call it in a thread."""
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(edge):
    async with openai.AsyncOpenAI(
        base_url=f"{edge.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def in_thread(function):
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


async def test_sync_completion(edge, client):
    edge.door.script = words(TEXT)
    completion = await in_thread(
        lambda: client.chat.completions.create(model="fake", messages=MESSAGES)
    )
    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == 3 + len(TEXT.split(" "))
    assert completion._request_id == completion.id.removeprefix("chatcmpl-")


async def test_sync_stream_with_usage(edge, client):
    edge.door.script = words(TEXT)

    def read():
        return list(
            client.chat.completions.create(
                model="fake",
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
            )
        )

    *chunks, usage = await in_thread(read)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert usage.choices == []
    assert usage.usage.prompt_tokens == 3


async def test_async_completion_and_stream(edge, async_client):
    edge.door.script = words(TEXT)
    create = async_client.chat.completions.create
    completion = await create(model="fake", messages=MESSAGES)
    assert completion.choices[0].message.content == TEXT
    stream = await create(model="fake", messages=MESSAGES, stream=True)
    assert stream.response.headers["x-aimo-provider"] == FAKE_PEER
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == TEXT


async def test_tools_in_the_request_and_a_call_in_the_stream(edge, client):
    opening = {**CALL, "index": 0, "function": {"name": "add", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": '{"a":1}'}}
    edge.door.script = [
        [delta({"index": 0, "delta": {"tool_calls": [piece]}})] for piece in (opening, rest)
    ] + [[Finish(FinishReason.TOOL_CALLS, Usage(5, 5))]]

    def read():
        with client.chat.completions.stream(
            model="fake", messages=MESSAGES, tools=TOOLS, tool_choice="auto"
        ) as stream:
            return stream.get_final_completion()

    completion = await in_thread(read)
    (call,) = completion.choices[0].message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", '{"a":1}')
    assert completion.choices[0].finish_reason == "tool_calls"
    assert json.loads(edge.door.requests[0].body)["tools"] == TOOLS


async def test_tool_call_in_a_whole_answer_and_its_result_in_the_next_request(edge, client):
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    edge.door.script = [
        [delta({"index": 0, "message": message}), Finish(FinishReason.TOOL_CALLS, Usage())]
    ]

    def read():
        asked = client.chat.completions.create(model="fake", messages=MESSAGES, tools=TOOLS)
        result = {"role": "tool", "tool_call_id": "call_1", "content": "7"}
        edge.door.script = words("It is 7")
        answered = client.chat.completions.create(
            model="fake", messages=[*MESSAGES, asked.choices[0].message, result], tools=TOOLS
        )
        return asked, answered

    asked, answered = await in_thread(read)
    assert asked.choices[0].message.tool_calls[0].function.name == "add"
    assert answered.choices[0].message.content == "It is 7"


def delta(*choices: object) -> JsonDelta:
    return JsonDelta(json.dumps(choices).encode())


async def test_models_are_listed_and_retrieved(client):
    assert [model.id for model in await in_thread(client.models.list)] == ["fake"]
    assert (await in_thread(lambda: client.models.retrieve("fake"))).object == "model"
    with pytest.raises(openai.NotFoundError):
        await in_thread(lambda: client.models.retrieve("none/such"))


@pytest.mark.parametrize(
    ("refusal", "raised", "code"),
    [
        (
            ContextLengthExceeded("Too long.", param="messages"),
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        (Overloaded("Busy."), openai.InternalServerError, "overloaded"),
    ],
)
async def test_refusal_is_the_sdks_own_error(edge, async_client, refusal, raised, code):
    edge.door.refusal = refusal
    for stream in (True, False):
        with pytest.raises(raised) as caught:
            await async_client.chat.completions.create(
                model="fake", messages=MESSAGES, stream=stream
            )
        assert caught.value.code == code
        assert refusal.message in str(caught.value)


async def test_invalid_request_names_the_field(async_client):
    with pytest.raises(openai.BadRequestError) as caught:
        await async_client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": 5}]
        )
    assert caught.value.param == "messages[0].content"


async def test_unknown_model_is_not_found(async_client):
    with pytest.raises(openai.NotFoundError) as caught:
        await async_client.chat.completions.create(model="none", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


async def test_break_in_mid_stream_raises_after_what_was_said(edge, async_client):
    edge.door.script = [["Hel"], ["lo"], StreamInterrupted("The provider was lost.")]
    stream = await async_client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True
    )
    said = []
    with pytest.raises(openai.APIError, match="The provider was lost") as caught:  # noqa: PT012
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content)  # noqa: PERF401 (kept when it raises)
    assert said == ["Hel", "lo"]
    assert caught.value.code == "stream_interrupted"


async def test_comments_in_silence_are_not_seen(edge, async_client):
    pause = Pause()
    edge.door.script = [["Hel"], pause, ["lo", Finish(FinishReason.STOP, Usage())]]
    stream = await async_client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True
    )
    said = []
    async for chunk in stream:
        said.append(chunk.choices[0].delta.content)
        if len(said) == 1:
            await pause.reached.wait()
            await trio.sleep(0.2)  # several comments long
            pause.over.set()
    assert said == ["Hel", "lo", None]


async def test_closing_the_stream_stops_the_provider(edge, async_client):
    edge.door.script = [["Hel"], Pause()]
    stream = await async_client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    with trio.fail_after(5):
        await edge.door.answers[0].cancelled.wait()


async def test_many_streams_at_once_each_get_their_own_words(edge, async_client):
    edge.door.script = lambda request: words(" ".join([request.body.decode()[-12:]] * 5))

    async def one(number: int) -> None:
        stream = await async_client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, user=f"u{number:04d}"
        )
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert said.count(f"u{number:04d}") == 5

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)


async def test_sdk_retries_while_the_node_is_busy(edge):
    """The SDK waits as long as Retry-After says."""
    edge.door.refusal = Overloaded("Busy.", retry_after_seconds=1)

    async def recover():
        with trio.fail_after(10):
            while not edge.door.requests:  # noqa: ASYNC110 (what a socket brings has no event)
                await trio.sleep(0.01)
        edge.door.refusal = None

    async with (
        openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none") as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(recover)
        completion = await client.chat.completions.create(model="fake", messages=MESSAGES)
    assert completion.choices[0].message.content == "Hello there"
    assert len(edge.door.requests) == 2


ASYNCIO_PROGRAM = """
import asyncio, sys, openai

async def main():
    async with openai.AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)

asyncio.run(main())
"""


async def test_async_client_on_asyncio(edge):
    """As most consumers run it, in a process of its own."""
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, "-c", ASYNCIO_PROGRAM, edge.url], capture_stdout=True
        )
    assert done.stdout == b"Hello there"
