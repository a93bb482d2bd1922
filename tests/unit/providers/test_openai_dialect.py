"""What an upstream's refusal means for the caller."""

import json

import pytest

from aimo_node.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
)
from providers.answers import MESSAGE_CHARACTERS_MAX
from providers.openai.dialect import refusal


def error(message="", **more):
    return json.dumps({"error": {"message": message, **more}}).encode()


LLAMA_OVERFLOW = error(
    "request (1811 tokens) exceeds the available context size (1024 tokens)",
    code=400,
    type="exceed_context_size_error",
)
VLLM_OVERFLOW = json.dumps(
    {
        "object": "error",
        "message": "This model's maximum context length is 2048 tokens.",
        "code": 400,
    }
).encode()
OPENAI_OVERFLOW = error("Too long.", code="context_length_exceeded")


@pytest.mark.parametrize("body", [LLAMA_OVERFLOW, VLLM_OVERFLOW, OPENAI_OVERFLOW])
def test_context_overflow_is_recognised_in_every_dialect(body):
    assert type(refusal(400, {}, body)) is ContextLengthExceeded


def test_context_overflow_keeps_the_numbers():
    assert "1811 tokens" in refusal(400, {}, LLAMA_OVERFLOW).message


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, error("temperature must be a number"), InvalidRequest),
        (400, b"", InvalidRequest),
        (422, error("no"), InvalidRequest),
        (401, error("Incorrect key sk-123"), EngineFailed),
        (403, b"", EngineFailed),
        (404, b"", ModelNotFound),
        (413, b"", PayloadTooLarge),
        (429, b"", Overloaded),
        (503, b"", Overloaded),
        (500, error("image input is not supported"), InvalidRequest),
        (501, error("This server does not support embeddings"), InvalidRequest),
        (500, error("boom"), EngineFailed),
        (502, b"<html>", EngineFailed),
        (302, b"", EngineFailed),
        (201, b"", EngineFailed),
    ],
)
def test_status_decides_whose_fault_it_is(status, body, kind):
    assert type(refusal(status, {}, body)) is kind


def test_owners_key_is_not_quoted():
    assert "sk-123" not in refusal(401, {}, error("Incorrect key sk-123")).message


def test_internals_of_a_failing_upstream_are_not_quoted():
    assert "srv" not in refusal(500, {}, error("boom at /srv/secret")).message


def test_message_is_one_printable_line_of_bounded_length():
    message = refusal(400, {}, error("a\r\nb\x1b[31m" + "x" * 10_000)).message
    assert message.isprintable()
    assert len(message) == MESSAGE_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("999999", 3600.0), ("soon", None), ("-1", None), ("", None)],
)
def test_retry_after_is_read_where_it_is_a_number(header, seconds):
    assert refusal(429, {"retry-after": header}, b"").retry_after_seconds == seconds


@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b'{"error": 5}', b'{"error": "x"}', b"\xff", b"[" * 9999]
)
def test_odd_error_bodies_do_no_harm(body):
    assert type(refusal(400, {}, body)) is InvalidRequest
