"""What each address answers, in memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason, ModelName
from aimo_node.domain.models import EngineInfo, EngineState, ModelInfo
from aimo_node.edge.app import create_app, create_health_app
from aimo_node.edge.asgi import EdgeApp
from aimo_node.edge.health import Vitals
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.errors import (
    ContextLengthExceeded,
    EngineFailed,
    NetworkError,
    Overloaded,
    StreamInterrupted,
)
from aimo_node.testing import fake_door
from aimo_node.testing.fake_door import FAKE_DIGEST, FAKE_PEER, FakeDoor, fake_view, words

from .conftest import CHAT, AsgiCall


async def test_whole_answer_with_where_it_came_from(ask_chat, door):
    call = await ask_chat().run()
    assert call.status == 200
    assert call.json["choices"][0]["message"]["content"] == "Hello there"
    assert call.json["usage"]["total_tokens"] == 5
    headers = call.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-aimo-provider"] == FAKE_PEER
    assert headers["x-aimo-path"] == "direct"
    assert headers["x-aimo-attempts"] == "1"
    assert call.json["id"] == "chatcmpl-" + headers["x-aimo-request-id"]
    assert door.answers[0].cancelled.is_set()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_says_who_was_asked_and_over_which_path(ask_chat, door, stream):
    door.script = [EngineFailed("out of memory")]
    call = await ask_chat(stream=stream).run()
    assert call.status >= 500
    assert (call.headers["x-aimo-provider"], call.headers["x-aimo-path"]) == (FAKE_PEER, "direct")
    door.unreachable = NetworkError("nobody answers there")
    call = await ask_chat(stream=stream).run()
    assert call.status >= 500
    assert (call.headers["x-aimo-provider"], call.headers["x-aimo-path"]) == (FAKE_PEER, "none")
    assert call.headers["x-aimo-attempts"] == "1"
    door.unreachable, door.refusal = None, Overloaded("full")
    assert "x-aimo-path" not in (await ask_chat(stream=stream).run()).headers


async def test_streamed_answer_ends_with_done(ask_chat, door):
    call = await ask_chat(stream=True).run()
    assert call.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert call.headers["x-aimo-provider"] == FAKE_PEER
    *events, done, rest = call.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == "Hello there"
    assert call.is_complete
    assert door.answers[0].cancelled.is_set()


async def test_parts_that_came_together_go_out_together(ask_chat, door):
    door.script = [["a", "b", "c"], ["d", Finish(FinishReason.STOP, Usage())]]
    call = await ask_chat(stream=True).run()
    bodies = [message["body"] for message in call.messages[1:]]
    assert [body.count(b"data: ") for body in bodies] == [3, 3, 0]


async def test_request_reaches_the_door_as_it_was_meant(ask_chat, door):
    await ask_chat(temperature=0.5, unknown={"x": [1]}).run()
    (request,) = door.requests
    assert json.loads(request.body) == {**CHAT, "temperature": 0.5, "unknown": {"x": [1]}}
    assert (request.model, request.stream, request.provider) == ("fake", False, None)
    assert request.deadline_seconds == 600


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("Busy.", retry_after_seconds=3), 503, "overloaded"),
        (ContextLengthExceeded("Too long.", param="messages"), 400, "context_length_exceeded"),
        (EngineFailed("Broken."), 502, "engine_failed"),
    ],
)
async def test_early_error_is_a_proper_status(ask_chat, door, stream, error, status, code):
    """Whether the door refuses or the first parts never come: the head has not gone out yet."""
    door.script = [error]
    late = await ask_chat(stream=stream).run()
    assert late.headers["x-aimo-provider"] == FAKE_PEER
    door.refusal = error
    early = await ask_chat(stream=stream).run()
    for call in (late, early):
        assert call.status == status
        assert call.json["error"]["code"] == code
        assert call.headers.get("retry-after") == ("3" if status == 503 else None)
    assert door.answers[0].cancelled.is_set()


async def test_late_error_is_an_event_and_no_done(ask_chat, door):
    door.script = [["Hel"], StreamInterrupted("The provider was lost.")]
    call = await ask_chat(stream=True).run()
    assert call.status == 200
    _, event, rest = call.body.split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"
    assert rest == b""
    assert call.is_complete
    assert door.answers[0].cancelled.is_set()


async def test_late_error_of_a_whole_answer_is_a_status(ask_chat, door):
    door.script = [["Hel"], StreamInterrupted("The provider was lost.")]
    call = await ask_chat().run()
    assert call.status == 502


@pytest.mark.parametrize("data", [b"nonsense", b'[{"index":3,"delta":{}}]'])
async def test_malformed_delta_in_mid_stream_ends_it_with_an_error(ask_chat, door, data):
    door.script = [["Hel"], [JsonDelta(data)], ["never"]]
    call = await ask_chat(stream=True).run()
    assert b'"engine_failed"' in call.body
    assert b"never" not in call.body
    assert door.answers[0].cancelled.is_set()


@pytest.mark.parametrize("stream", [True, False])
async def test_bug_behind_the_door_is_told_without_details(ask_chat, door, stream):
    door.script = [["Hel"]]  # the script ends too soon: an IndexError
    call = await ask_chat(stream=stream).run()
    assert b"internal_error" in call.body
    assert b"IndexError" not in call.body
    assert call.is_complete
    assert door.answers[0].cancelled.is_set()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"a":' * 100_000, 400),
        (b"[" * 1_000_000, 400),
        (b'{"model":"fake"}', 400),
        (b"x" * (8 * 1024 * 1024 + 1), 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", f"/v1/request/{FAKE_PEER}"])
async def test_bad_bodies_are_refused_in_openais_shape(ask, door, path, body, status):
    call = await ask("POST", path, body).run()
    assert call.status == status
    assert set(call.json["error"]) == {"message", "type", "param", "code"}
    assert call.json["error"]["type"] == "invalid_request_error"
    assert not door.requests


async def test_guard_answers_before_any_route(ask, door):
    call = await ask(
        "POST", "/v1/chat/completions", CHAT, headers=((b"origin", b"http://x"),)
    ).run()
    assert call.status == 403
    assert not door.requests


async def test_key_makes_a_consumer(door):
    key = b"sk-0123456789abcdef"
    settings = EdgeSettings(api_keys=frozenset({hashlib.sha256(key).digest()}))
    app = create_app(door, settings)
    refused = await AsgiCall(app, "POST", "/v1/chat/completions", CHAT).run()
    assert refused.status == 401
    assert refused.json["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer"
    headers = ((b"authorization", b"Bearer " + key),)
    assert (
        await AsgiCall(app, "POST", "/v1/chat/completions", CHAT, headers=headers).run()
    ).status == 200
    assert len(door.requests[0].consumer) == 16


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1//models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/static/x", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("GET", "/v1/stream", 400),
        ("GET", "/v1/models/nobody", 404),
        ("POST", "/v1/request/nobody", 404),
    ],
)
async def test_wrong_addresses_and_methods_are_refused_in_openais_shape(ask, method, path, status):
    call = await ask(method, path, {} if method == "POST" else None).run()
    assert call.status == status
    assert set(call.json["error"]) == {"message", "type", "param", "code"}
    assert not any(name.startswith("access-control") for name in call.headers)


async def test_models_are_listed_and_found(ask, door):
    door.views = [fake_view("tiny", "org/large")]
    listed = (await ask(path="/v1/models").run()).json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "org/large"]
    assert {model["object"] for model in listed["data"]} == {"model"}
    for name in ("org/large", f"{FAKE_PEER}:tiny"):
        assert (await ask(path=f"/v1/models/{name}").run()).json["id"] == name
    missing = await ask(path=f"/v1/models/{FAKE_PEER}:huge").run()
    assert missing.json["error"]["code"] == "model_not_found"


async def test_providers_are_listed(ask):
    (provider,) = (await ask(path="/v1/providers").run()).json["data"]
    assert provider["id"] == FAKE_PEER
    assert provider["models"] == ["fake"]
    assert (provider["status"], provider["running"], provider["waiting"]) == ("healthy", 0, 0)
    assert provider["path"] == "direct"


async def test_providers_show_their_engines_and_which_model_is_loaded_first(ask, door):
    models = (
        ModelInfo(ModelName("tiny")),
        ModelInfo(ModelName("large"), state=EngineState.STOPPED),
    )
    engines = (
        EngineInfo("llama", "llama", EngineState.RUNNING, (ModelName("tiny"),), 4),
        EngineInfo("gpu", "vllm", EngineState.DOWNLOADING),
    )
    busy = {"kv_used": 0.25, "prefix_hits": 0.415, "first_token_seconds": 0.1874}
    door.views = [replace(fake_view(), models=models, engines=engines, **busy)]
    (provider,) = (await ask(path="/v1/providers").run()).json["data"]
    assert provider["models"] == ["tiny", "large"]
    assert provider["model_states"] == {"tiny": "running", "large": "stopped"}
    assert provider["engines"] == [
        {
            "label": "llama",
            "engine": "llama",
            "state": "running",
            "models": ["tiny"],
            "requests_max": 4,
        },
        {
            "label": "gpu",
            "engine": "vllm",
            "state": "downloading",
            "models": [],
            "requests_max": 0,
        },
    ]
    assert (provider["kv_used"], provider["prefix_hits"]) == (0.25, 0.415)
    assert provider["first_token_ms"] == 187
    listed = (await ask(path="/v1/models").run()).json["data"]
    assert [model["state"] for model in listed] == ["running", "stopped"]


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_names_the_digest_of_the_model_that_gave_it(ask_chat, ask, stream):
    call = await ask_chat(stream=stream).run()
    (model,) = (await ask(path="/v1/models").run()).json["data"]
    assert call.headers["x-aimo-model-digest"] == model["digest"] == FAKE_DIGEST.hex()


async def test_digest_nobody_knows_is_not_named(ask_chat, monkeypatch):
    monkeypatch.setattr(fake_door, "FAKE_DIGEST", b"")
    assert "x-aimo-model-digest" not in (await ask_chat().run()).headers


async def test_native_request_is_pinned_to_its_provider(ask, door):
    body = {"endpoint": "/v1/chat/completions", "body": CHAT}
    call = await ask("POST", f"/v1/request/{FAKE_PEER}", body).run()
    assert call.json["choices"][0]["message"]["content"] == "Hello there"
    assert door.requests[0].provider == FAKE_PEER
    streamed = {"endpoint": "/v1/chat/completions", "body": {**CHAT, "stream": True}}
    call = await ask("POST", f"/v1/request/{FAKE_PEER}", streamed).run()
    assert call.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"body": CHAT}, "endpoint"),
        ({"endpoint": "/v1/chat/completions"}, "body"),
        ({"endpoint": "/etc/passwd", "body": CHAT}, "endpoint"),
        ({"endpoint": "/v1/chat/completions", "body": []}, "body"),
        ({"endpoint": "/v1/chat/completions", "body": {"model": "m"}}, "body.messages"),
    ],
)
async def test_native_request_names_the_offending_field(ask, body, param):
    call = await ask("POST", f"/v1/request/{FAKE_PEER}", body).run()
    assert call.status == 400
    assert call.json["error"]["param"] == param


async def test_draining_refuses_new_requests_and_readiness(ask, ask_chat, door):
    assert (await ask(path="/readyz").run()).status == 200
    door.draining = True
    call = await ask_chat().run()
    assert call.status == 503
    assert call.headers["retry-after"] == "5"
    assert call.json["error"]["code"] == "draining"
    assert (await ask(path="/readyz").run()).status == 503
    assert (await ask(path="/v1/health").run()).status == 200
    assert not door.requests


async def test_node_that_has_not_joined_is_alive_and_not_ready(door):
    app = create_app(door, EdgeSettings(), vitals=Vitals(is_ready=lambda: False))
    assert (await AsgiCall(app, path="/readyz").run()).status == 503
    health = await AsgiCall(app, path="/v1/health").run()
    assert (health.status, health.json["ready"]) == (200, False)


async def test_drain_signal_alone_refuses_too(door):
    drain = DrainSignals()
    app = create_app(door, EdgeSettings(), drain=drain)
    drain.begun.set()
    assert (await AsgiCall(app, "POST", "/v1/chat/completions", CHAT).run()).status == 503


async def test_health_application_has_no_other_address():
    app: EdgeApp = create_health_app(EdgeSettings(), Vitals(lambda: True, lambda: b"aimo_up 1\n"))
    metrics = await AsgiCall(app, path="/metrics").run()
    assert metrics.body == b"aimo_up 1\n"
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (await AsgiCall(app, path="/readyz").run()).status == 200
    assert (await AsgiCall(app, path="/v1/models").run()).status == 404
    assert (await AsgiCall(app, "POST", "/v1/chat/completions", CHAT).run()).status == 404


async def test_usage_chunk_comes_only_if_asked_for(ask_chat):
    with_usage = await ask_chat(stream=True, stream_options={"include_usage": True}).run()
    assert b'"choices":[],"usage":{"prompt_tokens":3' in with_usage.body
    assert b"usage" not in (await ask_chat(stream=True).run()).body


class CountedMetrics:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def request_started(self, endpoint: str) -> None:
        self.told.append(("started", endpoint))

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("ended", endpoint, outcome))

    def first_token(self, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("first",))

    def chunks(self, count: int) -> None:
        self.told.append(("chunks", count))


@pytest.mark.parametrize("stream", [True, False])
async def test_each_request_is_counted_once_with_its_outcome(stream):
    metrics = CountedMetrics()
    door = FakeDoor([["a", "b"], *words("c")])
    app = create_app(door, EdgeSettings(), metrics=metrics)
    body = {**CHAT, "stream": stream}
    await AsgiCall(app, "POST", "/v1/chat/completions", body).run()
    door.refusal = Overloaded("")
    await AsgiCall(app, "POST", "/v1/chat/completions", body).run()
    assert metrics.told == [
        ("started", "chat"),
        ("first",),
        ("chunks", 2),
        ("chunks", 1),
        ("chunks", 0),
        ("ended", "chat", "ok"),
        ("started", "chat"),
        ("ended", "chat", "Overloaded"),
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_bug_is_counted_as_one(stream):
    metrics = CountedMetrics()
    app = create_app(FakeDoor([["a"]]), EdgeSettings(), metrics=metrics)
    await AsgiCall(app, "POST", "/v1/chat/completions", {**CHAT, "stream": stream}).run()
    assert metrics.told[-1] == ("ended", "chat", "InternalError")
