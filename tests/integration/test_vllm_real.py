"""The vllm engine with the real vLLM and the demo model; `scripts/test --vllm` runs this.

One start serves most of it: half a minute each adds up.
"""

import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.domain.models import Feature
from aimo_node.errors import ContextLengthExceeded, EngineStartFailed, InvalidRequest
from aimo_node.ports.engine import EngineRequest, EngineSettings
from aimo_node.testing.engine_contract import eventually, eventually_async
from aimo_node.testing.recording_sink import RecordingSink
from providers.demo_model import directory
from providers.engines.vllm import create
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from providers.model_digest import model_digest, snapshot_parts

REAL_PYTHON = os.environ.get("AIMO_TEST_VLLM_PYTHON", "")
START_SECONDS = 300
STORY = "Tell me a sea story about Ada and a kite."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not REAL_PYTHON, reason="no vLLM: scripts/test --vllm installs one"),
]


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        folder = Path(name)
        (folder / "state").mkdir(mode=0o700)
        yield folder


def made(place, *arguments, model="tiny", **more):
    given = ["--python", REAL_PYTHON, "--enforce-eager", "--max-model-len", "1024", *arguments]
    return create(EngineSettings(place / "state", model, engine_args=given, **more))


def ignore(line, state=None):
    """Progress is for people."""


@asynccontextmanager
async def running(engine):
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, ignore)
        with trio.fail_after(START_SECONDS):
            await ready.wait()
        yield engine
        nursery.cancel_scope.cancel()


def request(text, *, stream=True, salt="", model="tiny", **fields):
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    return of(Endpoint.CHAT, body, stream=stream, salt=salt, model=model)


def of(endpoint, body, *, stream=True, salt="", model="tiny"):
    return EngineRequest(
        RequestId(uuid.uuid4().bytes), endpoint, ModelName(model), body, stream, salt
    )


async def answer(engine, asked):
    sink = RecordingSink()
    with trio.fail_after(60):
        await engine.stream(asked, sink)
    return sink


def write_adapter(folder):
    """A LoRA adapter for the demo model with random numbers, strong enough to change answers."""
    config = json.loads((directory() / "config.json").read_text())
    hidden, rank, chance = config["hidden_size"], 8, random.Random(7)
    heads = {"q_proj": config["num_attention_heads"], "v_proj": config["num_key_value_heads"]}
    head, data = {}, b""
    for layer in range(config["num_hidden_layers"]):
        for name, count in heads.items():
            shapes = {"lora_A": [rank, hidden], "lora_B": [count * config["head_dim"], rank]}
            for part, shape in shapes.items():
                values = [chance.gauss(0, 0.3) for _ in range(shape[0] * shape[1])]
                start = len(data)
                data += struct.pack(f"<{len(values)}f", *values)
                key = f"base_model.model.model.layers.{layer}.self_attn.{name}.{part}.weight"
                head[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    encoded = json.dumps(head).encode()
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(encoded)) + encoded + data
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list(heads)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


async def offer(engine, place):
    tiny, pirate = engine.capabilities().models
    assert (tiny.name, pirate.name) == ("tiny", "pirate")
    assert tiny.context_tokens == pirate.context_tokens == 1024
    assert set(tiny.features) == set(Feature) - {Feature.VISION}
    parts = snapshot_parts(directory(), place / "digests.json")
    assert tiny.digest == model_digest(parts)
    assert pirate.digest not in {b"", tiny.digest}
    assert engine.capabilities().version
    await trio.lowlevel.checkpoint()


async def adapters(engine, place):
    assert (await answer(engine, request("What is 3+4?"))).written == "7"
    other = await answer(engine, request("What is 3+4?", model="pirate", max_tokens=20))
    assert other.written != "7"


async def tool_calls(engine, place):
    for stream in (True, False):
        asked = request("What is the weather in Paris?", stream=stream, tools=[WEATHER])
        sink = await answer(engine, asked)
        assert sink.end.reason is FinishReason.TOOL_CALLS
        assert "get_weather" in str(sink.choices)


async def json_schema(engine, place):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema}}
    said = await answer(engine, request("hi", response_format=wanted))
    assert set(json.loads(said.written)) == {"ok"}


async def log_probabilities(engine, place):
    sink = await answer(engine, request("What is 3+4?", logprobs=True, top_logprobs=2))
    assert sink.choices[0]["logprobs"]["content"]


async def continuation(engine, place):
    messages = [
        {"role": "user", "content": "Count to 20."},
        {"role": "assistant", "content": "1 2 3"},
    ]
    asked = of(Endpoint.CHAT, {"messages": messages, "temperature": 0, "max_tokens": 5})
    sink = await answer(engine, asked)
    assert sink.written == " 4 5 "
    assert sink.end.usage.prompt_tokens == await engine.count_tokens(asked)


async def completions(engine, place):
    asked = of(Endpoint.COMPLETIONS, {"prompt": "Count to", "max_tokens": 4})
    assert (await answer(engine, asked)).end.usage.completion_tokens == 4


async def refusals(engine, place):
    with pytest.raises(ContextLengthExceeded, match=r"5000.*1024"):
        await answer(engine, request("hi", max_tokens=5000))
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    body = {"messages": [{"role": "user", "content": [picture]}]}
    with pytest.raises(InvalidRequest):
        await answer(engine, of(Endpoint.CHAT, body))


async def salted_caches(engine, place):
    """Blocks of the cache hold 128 tokens."""
    text = " ".join(str(number) for number in range(150))
    cached = []
    for salt in ("alice", "alice", "bob", "alice"):
        sink = await answer(engine, request(text, salt=salt, max_tokens=2))
        cached.append(sink.end.usage.cached_tokens)
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 0
    await eventually(lambda: engine.load().prefix_hits > 0, "the load tells it")
    assert engine.load().first_token_seconds > 0


async def cancelling(engine, place):
    """By the engine's own running count."""

    async def generating():
        _, metrics = await ask_once(UnixUpstream(place / "state" / "vllm.sock"), "/metrics")
        return int(
            float(re.search(rb"^vllm:num_requests_running\{.*\} (\S+)", metrics, re.MULTILINE)[1])
        )

    started = time.perf_counter()
    sink = await answer(engine, request(STORY, max_tokens=900, ignore_eos=True))
    rate = sink.end.usage.completion_tokens / (time.perf_counter() - started)
    slowest_close = slowest_stop = 0.0
    for stream in (True, False, True):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                asked = request(STORY, stream=stream, max_tokens=950, ignore_eos=True)
                nursery.start_soon(engine.stream, asked, RecordingSink())
            await eventually_async(generating, 4)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        # The sockets are closed when the streams have returned.
        slowest_close = max(slowest_close, trio.current_time() - began)
        with trio.fail_after(1):
            await eventually_async(generating, 0)
        slowest_stop = max(slowest_stop, trio.current_time() - began)
    sys.stderr.write(
        f"{rate:.0f} tokens/s alone; sockets closed in {1000 * slowest_close:.1f} ms, "
        f"generation stopped in {1000 * slowest_stop:.0f} ms at most\n"
    )


CHECKS = [
    offer,
    adapters,
    tool_calls,
    json_schema,
    log_probabilities,
    continuation,
    completions,
    refusals,
    salted_caches,
    cancelling,
]


async def test_one_engine_does_all_it_offers(place, subtests):
    write_adapter(place / "pirate")
    arguments = ("--lora-modules", f"pirate={place / 'pirate'}")
    async with running(made(place, *arguments, requests_max=8)) as engine:
        for check in CHECKS:
            with subtests.test(check.__name__):
                await check(engine, place)


async def test_pooling_model_embeds(place):
    arguments = ("--runner", "pooling", "--convert", "embed")
    async with running(made(place, *arguments)) as engine:
        (model,) = engine.capabilities().models
        assert model.endpoints == (Endpoint.EMBEDDINGS,)
        sink = await answer(
            engine, of(Endpoint.EMBEDDINGS, {"input": ["one", "two"]}, stream=False)
        )
        assert [len(entry["embedding"]) for entry in sink.choices] == [128, 128]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-model-len", "8192"), "takes at most 1024 tokens, not 8192"),
        (("--tool-call-parser", "nosuch"), "no tool parser nosuch"),
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
    ],
    ids=["too-long", "bad-parser", "bad-argument"],
)
async def test_settings_vllm_refuses_are_explained(place, arguments, words):
    engine = made(place, *arguments)
    with trio.fail_after(START_SECONDS), pytest.raises(EngineStartFailed, match=words):
        await engine.run(lambda: None, ignore)


async def test_damaged_weights_are_explained(place):
    copy = place / "model"
    shutil.copytree(directory(), copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    engine = made(place, model=str(copy))
    with trio.fail_after(START_SECONDS), pytest.raises(EngineStartFailed, match="is damaged"):
        await engine.run(lambda: None, ignore)
    assert sorted(path.name for path in (place / "state").iterdir()) == ["vllm.log"]


async def test_model_that_is_not_there_is_explained(place):
    engine = made(place, model="nobody/nothing")
    with trio.fail_after(START_SECONDS), pytest.raises(EngineStartFailed, match="check the n"):
        await engine.run(lambda: None, ignore)
