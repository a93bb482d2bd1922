"""What an upstream's model list tells, in the forms that are about."""

import json

import pytest

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import EngineStartFailed
from providers.upstreams.model_list import ListedModel, read_models

TALKS = (Endpoint.CHAT, Endpoint.COMPLETIONS)


def read(*entries):
    return read_models(json.dumps({"data": list(entries)}).encode())


def test_context_and_owner():
    listed = read(
        {"id": "a", "owned_by": "vllm", "max_model_len": 4096},
        {"id": "b", "owned_by": "llamacpp", "meta": {"n_ctx": 1024}},
        {"id": "c", "context_length": 8192},
        {"id": "d", "context_window": 131072},
        {"id": "e", "max_context_length": 32768, "owned_by": ["odd"]},
        {"id": "f", "max_model_len": "long"},
        {"id": "g", "max_model_len": True},
        {"id": "h", "max_model_len": -1},
    )
    assert listed == [
        ListedModel("a", "vllm", 4096),
        ListedModel("b", "llamacpp", 1024),
        ListedModel("c", "", 8192),
        ListedModel("d", "", 131072),
        ListedModel("e", "", 32768),
        ListedModel("f"),
        ListedModel("g"),
        ListedModel("h"),
    ]


@pytest.mark.parametrize(
    "entry", [{"id": 5}, {"id": ""}, {"id": "a\nb"}, {"id": "x" * 257}, "nonsense", None, {}]
)
def test_what_is_no_model_is_passed_over(entry):
    assert read(entry, {"id": "a"}) == [ListedModel("a")]


def test_name_that_comes_twice_is_one_model():
    assert len(read({"id": "a"}, {"id": "a", "max_model_len": 5})) == 1


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b"\xff"])
def test_page_that_is_no_json_object_is_refused(answer):
    with pytest.raises(EngineStartFailed, match="is --endpoint right"):
        read_models(answer)


@pytest.mark.parametrize("answer", [b"{}", b'{"data": null}', b'{"data": "x"}'])
def test_list_without_entries_is_empty(answer):
    assert read_models(answer) == []


@pytest.mark.parametrize(
    ("entry", "endpoints"),
    [
        ({"type": "chat"}, TALKS),
        ({"type": "embedding"}, (Endpoint.EMBEDDINGS,)),
        ({"type": "embeddings"}, (Endpoint.EMBEDDINGS,)),
        ({"type": "image"}, (Endpoint.IMAGES,)),
        ({"type": "moderation"}, ()),
        ({"type": 5}, ()),
        ({"capabilities": ["completion", "multimodal"]}, TALKS),
        ({"capabilities": ["embedding"]}, (Endpoint.EMBEDDINGS,)),
        ({"capabilities": {"type": "embeddings"}}, (Endpoint.EMBEDDINGS,)),
        ({"capabilities": {"completion_chat": True, "vision": False}}, TALKS),
        ({"capabilities": {"completion_chat": False}}, ()),
        ({"supported_endpoints": ["/chat/completions", "/responses"]}, (Endpoint.CHAT,)),
        ({"supported_endpoints": ["/v1/embeddings"]}, (Endpoint.EMBEDDINGS,)),
        ({"supported_endpoints": ["/responses"]}, ()),
        ({"supported_endpoints": "/embeddings"}, ()),
        ({}, ()),
    ],
)
def test_endpoints(entry, endpoints):
    (model,) = read({"id": "m", **entry})
    assert model.endpoints == endpoints


@pytest.mark.parametrize(
    ("entry", "features", "lacks"),
    [
        ({"capabilities": ["completion", "multimodal"]}, {Feature.VISION}, set()),
        (
            {"capabilities": {"vision": True, "function_calling": False}},
            {Feature.VISION},
            {Feature.TOOLS},
        ),
        (
            {"capabilities": {"supports": {"tool_calls": True, "vision": False}}},
            {Feature.TOOLS},
            {Feature.VISION},
        ),
        (
            {"supported_parameters": ["tools", "temperature"]},
            {Feature.TOOLS},
            {Feature.JSON_SCHEMA, Feature.LOGPROBS},
        ),
        ({"architecture": {"input_modalities": ["text", "image"]}}, {Feature.VISION}, set()),
        ({"architecture": "odd", "capabilities": 5}, set(), set()),
    ],
)
def test_features(entry, features, lacks):
    (model,) = read({"id": "m", **entry})
    assert (set(model.features), set(model.lacks)) == (features, lacks)
