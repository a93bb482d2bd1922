"""What the echo engine says, to the letter: load tests compare against it."""

import itertools
import time
import uuid
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.domain.models import Health
from aimo_node.errors import ConfigError, EngineFailed, InvalidRequest
from aimo_node.ports.engine import EngineRequest, EngineSettings
from aimo_node.testing.recording_sink import RecordingSink
from providers.engines.echo import TOKENS_MAX, create
from providers.registry import create_engine


def request(text="say it", stream=True, **fields):
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), Endpoint.CHAT, ModelName("echo"), body, stream
    )


@asynccontextmanager
async def running(tmp_path, *arguments):
    engine = create(EngineSettings(tmp_path, "echo", engine_args=arguments))
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda line: None)
        await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


async def answer(engine, asked):
    sink = RecordingSink()
    await engine.stream(asked, sink)
    return sink


async def test_answer_repeats_the_last_user_message_and_counts_on(tmp_path):
    async with running(tmp_path, "--tokens", "6") as engine:
        sink = await answer(engine, request("one  two\nthree"))
    assert sink.parts[:-1] == ["one ", "two ", "three ", "w0 ", "w1 ", "w2 "]
    assert sink.end.reason is FinishReason.STOP
    assert sink.end.usage == Usage(prompt_tokens=3, completion_tokens=6)


@pytest.mark.parametrize("delay_ms", [0, 10, 60_000], ids=["flat out", "paced", "before a token"])
async def test_cancelled_answer_is_generated_no_longer(tmp_path, delay_ms):
    """By the engine's own running count, and by what still comes."""
    async with running(tmp_path, "--tokens", str(TOKENS_MAX)) as engine:
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            asked = request(aimo={"delay_ms": delay_ms})
            nursery.start_soon(engine.stream, asked, sink)
            while not engine.load().running or (delay_ms < 1000 and not sink.parts):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert engine.load().running == 0
        written = len(sink.parts)
        with trio.move_on_after(0.25):
            await trio.sleep_forever()
        assert len(sink.parts) == written
        assert sink.end is None


async def test_max_tokens_sets_the_length_and_the_reason(tmp_path):
    async with running(tmp_path, "--tokens", "6") as engine:
        sink = await answer(engine, request("one two three", max_tokens=2))
    assert sink.parts[:-1] == ["one ", "two "]
    assert sink.end.reason is FinishReason.LENGTH
    assert sink.end.usage.completion_tokens == 2


async def test_prompt_tokens_are_the_words_of_all_messages(tmp_path):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one two"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    async with running(tmp_path, "--tokens", "3") as engine:
        sink = await answer(engine, request(messages=messages))
    assert sink.written == "one two w0 "
    assert sink.end.usage.prompt_tokens == 4


async def test_knobs_in_the_text_are_honoured(tmp_path):
    """The load generator reaches the engine through any gateway by what it says."""
    async with running(tmp_path) as engine:
        sink = await answer(engine, request("go mock-tokens=4 mock-delay-us=100"))
    assert sink.written == "go mock-tokens=4 mock-delay-us=100 w0 "
    assert sink.end.reason is FinishReason.STOP


async def test_max_tokens_limits_the_knob(tmp_path):
    async with running(tmp_path) as engine:
        sink = await answer(engine, request("mock-tokens=400", max_tokens=3))
    assert sink.end.usage.completion_tokens == 3
    assert sink.end.reason is FinishReason.LENGTH


async def test_delay_paces_the_tokens(tmp_path, autojump_clock):
    async with running(tmp_path, "--tokens", "100", "--delay-ms", "10") as engine:
        start = trio.current_time()
        await answer(engine, request())
        assert trio.current_time() - start == pytest.approx(1.0, abs=0.002)


async def test_request_may_set_its_own_delay(tmp_path, autojump_clock):
    async with running(tmp_path, "--tokens", "10", "--delay-ms", "10") as engine:
        start = trio.current_time()
        await answer(engine, request(aimo={"delay_ms": 100}))
        assert trio.current_time() - start == pytest.approx(1.0, abs=0.002)


async def test_whole_answer_takes_as_long_as_the_streamed_one(tmp_path, autojump_clock):
    async with running(tmp_path, "--tokens", "50", "--delay-ms", "20") as engine:
        start = trio.current_time()
        sink = await answer(engine, request(stream=False))
        assert trio.current_time() - start == pytest.approx(1.0, abs=0.002)
    assert len(sink.parts) == 2


async def test_stalled_stream_catches_up_without_loss(tmp_path, autojump_clock):
    async with running(tmp_path, "--tokens", "200", "--delay-ms", "10") as engine:
        start, sink = trio.current_time(), RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request("x"), sink)
            await sink.first.wait()
            sink.stall()
            await trio.sleep(1)
            assert len(sink.parts) == 1
            sink.flow()
        assert trio.current_time() - start == pytest.approx(2.0, abs=0.01)
    assert sink.written == "x " + "".join(f"w{index} " for index in range(199))


async def test_stream_added_later_does_not_wait_for_an_earlier_nap(tmp_path, autojump_clock):
    async with running(tmp_path, "--tokens", "1") as engine, trio.open_nursery() as nursery:
        nursery.start_soon(answer, engine, request(aimo={"delay_ms": 50_000}))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await answer(engine, request(aimo={"delay_ms": 10}))
        assert trio.current_time() - start < 0.02
        nursery.cancel_scope.cancel()


async def test_stamped_tokens_tell_when_they_were_due(tmp_path):
    async with running(tmp_path, "--tokens", "5", "--delay-ms", "2", "--stamp") as engine:
        before = time.monotonic()
        sink = await answer(engine, request())
    stamps = [int(part[1:]) / 1e6 for part in sink.parts[:-1]]
    assert stamps[0] == pytest.approx(before + 0.002, abs=0.001)
    assert [b - a for a, b in itertools.pairwise(stamps)] == pytest.approx([0.002] * 4)


async def test_sink_that_fails_ends_its_own_request_only(tmp_path):
    class Broken(RecordingSink):
        def text(self, delta):
            raise trio.BrokenResourceError

    async with running(tmp_path, "--tokens", "5", "--delay-ms", "1") as engine:
        with pytest.raises(trio.BrokenResourceError):
            await engine.stream(request(), Broken())
        sink = await answer(engine, request("still here"))
    assert sink.written.startswith("still here w0")


async def test_killed_engine_fails_what_is_running(tmp_path):
    async with running(tmp_path, "--delay-ms", "1000") as engine:

        async def expect_failure():
            with pytest.raises(EngineFailed):
                await engine.stream(request(), RecordingSink())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_failure)
            await trio.testing.wait_all_tasks_blocked()
            engine.kill()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"aimo": {"delay_ms": -1}}, "aimo.delay_ms"),
        ({"aimo": {"delay_ms": "fast"}}, "aimo.delay_ms"),
        ({"messages": "hello"}, "messages"),
    ],
)
async def test_wrong_field_is_named(tmp_path, fields, param):
    async with running(tmp_path) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await engine.stream(request(**fields), RecordingSink())
    assert caught.value.param == param


async def test_served_name_is_what_is_offered(tmp_path):
    engine = create(EngineSettings(tmp_path, "echo", served_name="parrot"))
    assert [model.name for model in engine.capabilities().models] == ["parrot"]


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--nonsense"):
        create(EngineSettings(tmp_path, "echo", engine_args=["--nonsense"]))


async def test_endless_answers_are_cut(tmp_path):
    async with running(tmp_path) as engine:
        sink = await answer(engine, request(max_tokens=10**9, stream=False))
    assert sink.end.usage.completion_tokens == TOKENS_MAX
    assert sink.end.reason is FinishReason.LENGTH


def test_engine_can_be_killed_outside_of_trio(tmp_path):
    for name, model in (("echo", "echo"), ("llama", "tiny"), ("openai", "m")):
        endpoint = "http://127.0.0.1:9" if name == "openai" else ""
        engine = create_engine(name, EngineSettings(tmp_path, model, endpoint=endpoint))
        engine.kill()
        engine.kill()
        assert engine.health() is Health.OFFLINE


@pytest.mark.parametrize("engine", ["echo", "llama"])
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--endpoint", {"endpoint": "http://127.0.0.1:9"}),
        ("--api-key-env", {"api_key_env": "KEY"}),
        ("--models", {"models": {"a": "b"}}),
    ],
)
def test_engine_without_an_upstream_refuses_its_settings(tmp_path, engine, flag, said):
    """What is not heeded must not be taken in silence."""
    with pytest.raises(ConfigError, match=flag):
        create_engine(engine, EngineSettings(tmp_path, **said))
