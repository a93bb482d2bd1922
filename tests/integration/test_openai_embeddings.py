"""Embeddings and images through the openai engine."""

import base64
import json
import struct
import uuid

import pytest

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import EngineRequest
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import Whole, stand_in_upstream
from aimo_node.testing.upstream_scripts import exactly
from providers.engines.openai_http import create
from providers.http.upstream import ANSWER_BYTES_MAX
from tests.integration.openai_calls import answer, embed, refused, request, running, settings


@pytest.fixture
async def upstream():
    async with stand_in_upstream(scripts.embeddings()) as served:
        yield served


@pytest.fixture
async def engine(upstream, tmp_path):
    async with running(create(settings(tmp_path, upstream.endpoint))) as started:
        yield started


async def test_each_text_gets_its_vector(engine, upstream):
    sink = await answer(engine, embed(["a", "b"]))
    assert sink.choices == [
        {"object": "embedding", "index": 0, "embedding": [0.0, 0.5, 0.5]},
        {"object": "embedding", "index": 1, "embedding": [1.0, 0.5, 0.5]},
    ]
    assert sink.end.reason is FinishReason.STOP
    assert sink.end.usage == Usage(2)
    (received,) = upstream.received
    assert received.path == "/v1/embeddings"
    assert received.body == {"model": "stand-in", "input": ["a", "b"]}


async def test_form_and_dimensions_are_passed_on(engine, upstream):
    sink = await answer(engine, embed("a", encoding_format="base64", dimensions=2))
    (entry,) = sink.choices
    assert struct.unpack("<2f", base64.b64decode(entry["embedding"])) == (0.0, 0.5)
    assert upstream.received[0].body["encoding_format"] == "base64"
    assert upstream.received[0].body["dimensions"] == 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (scripts.refusal(400, message="too many dimensions"), InvalidRequest),
        (scripts.refusal(400, message="maximum context length is 512"), ContextLengthExceeded),
        (scripts.refusal(404, message="no such model"), ModelNotFound),
        (scripts.BUSY, Overloaded),
        (scripts.BROKEN, EngineFailed),
        (exactly(Whole(200, b'{"data": []}')), EngineFailed),
        (exactly(Whole(200, b'{"data": [{"index": 0, "embedding": [1]}]}')), EngineFailed),
        (exactly(Whole(200, b'{"error": {"message": "died"}}')), EngineFailed),
        (exactly(Whole(200, b" " * (ANSWER_BYTES_MAX + 1))), InvalidRequest),
    ],
    ids=[
        "refused",
        "too-long",
        "no-model",
        "busy",
        "broken",
        "empty",
        "one-of-two",
        "error-with-200",
        "too-much",
    ],
)
async def test_every_failure_is_an_error_and_the_next_request_works(
    engine, upstream, script, error
):
    upstream.scripts.append(script)
    await refused(engine, embed(["a", "b"]), error)
    assert len((await answer(engine, embed("c"))).choices) == 1


async def test_vectors_cannot_be_streamed(engine):
    asked = EngineRequest(
        RequestId(uuid.uuid4().bytes), Endpoint.EMBEDDINGS, ModelName("stand-in"), {"input": "a"}
    )
    await refused(engine, asked, InvalidRequest)


async def test_model_of_which_the_list_says_that_it_embeds_does_nothing_else(upstream, tmp_path):
    upstream.models = scripts.models({"id": "vectors", "type": "embedding"}, "talker")
    engine = create(settings(tmp_path, upstream.endpoint, model="*"))
    async with running(engine):
        offered = {model.name: model.endpoints for model in engine.capabilities().models}
        assert offered == {
            "vectors": (Endpoint.EMBEDDINGS,),
            "talker": (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS),
        }
        await answer(engine, embed("a", model="vectors"))
        error = await refused(engine, request(model="vectors"), InvalidRequest)
        assert error.message == "vectors does not serve chat here"


async def test_owner_says_what_is_served(upstream, tmp_path):
    arguments = ("--endpoints", "chat,images")
    engine = create(settings(tmp_path, upstream.endpoint, *arguments))
    async with running(engine):
        (model,) = engine.capabilities().models
        assert model.endpoints == (Endpoint.CHAT, Endpoint.IMAGES)
        await refused(engine, embed("a"), InvalidRequest)
        upstream.scripts.append(exactly(Whole(200, json.dumps({"data": [{"url": "u"}]}).encode())))
        asked = EngineRequest(
            RequestId(bytes(16)), Endpoint.IMAGES, model.name, {"prompt": "a kite"}, stream=False
        )
        sink = RecordingSink()
        await engine.stream(asked, sink)
        assert sink.choices == [{"url": "u"}]
        assert upstream.received[0].path == "/v1/images/generations"
