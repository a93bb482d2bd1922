"""Pieces of the anthropic engine by themselves: event streams, errors, the model list, sizes."""

import json

import pytest

from aimo_node.domain.ids import FinishReason
from aimo_node.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
)
from aimo_node.testing import anthropic_upstream as scripts
from aimo_node.testing.anthropic_rules import objection
from aimo_node.testing.recording_sink import RecordingSink
from providers.anthropic import whole
from providers.anthropic.catalogue import ModelFacts, read_page
from providers.anthropic.dialect import FINISH_OF_STOP, STOP_OF_FINISH
from providers.anthropic.refusals import refusal
from providers.anthropic.stream import MessageStream
from providers.http.event_source import EVENT_BYTES_MAX, Event, EventSource

FRAME_BYTES_MAX = 65_536
"""What one delta may be on a link."""


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_events_are_cut_at_any_line_end(end):
    text = (
        b"\xef\xbb\xbfevent: a|data: 1|data:2||: comment|id: 7|retry: 3|||data|nonsense|event: b||"
    )
    source = EventSource()
    found = []
    for byte in text.replace(b"|", end):
        found += source.feed(bytes([byte]))
    found += source.feed(b"data:x" + end)
    assert found == [Event(b"a", b"1\n2"), Event(b"b", b"")]
    assert source.close() == [Event(b"", b"x")]
    assert source.close() == []


def test_last_line_without_an_end_counts():
    source = EventSource()
    assert source.feed(b"event: a\ndata: 1") == []
    assert source.close() == [Event(b"a", b"1")]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * EVENT_BYTES_MAX, b"data: xxxxxxxx\n"])
def test_endless_event_is_given_up(piece):
    source = EventSource()

    def feed_for_ever():
        while True:
            source.feed(piece)

    with pytest.raises(EngineFailed, match="more than 1048576 bytes"):
        feed_for_ever()


def body_of(kind, said="no", **more):
    return json.dumps({"type": "error", "error": {"type": kind, "message": said, **more}}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "said", "error", "sentence"),
    [
        (400, "invalid_request_error", "max_tokens: 9 > 8", InvalidRequest, "max_tokens: 9 > 8"),
        (
            *(400, "invalid_request_error", "prompt is too long: 214315 tokens > 200000 maximum"),
            *(ContextLengthExceeded, "the prompt has 214315 tokens, the model takes 200000"),
        ),
        (
            *(400, "invalid_request_error"),
            "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease",
            *(ContextLengthExceeded, "178959 tokens, which with max_tokens of 64000 is more than"),
        ),
        (
            *(400, "invalid_request_error", "Your credit balance is too low to access the API"),
            *(EngineFailed, "refuses to serve its owner"),
        ),
        (401, "authentication_error", "invalid x-api-key sk-1", EngineFailed, "of its owner"),
        (402, "billing_error", "pay", EngineFailed, "look after the bill"),
        (403, "permission_error", "sk-1 may not", EngineFailed, "credentials of its owner"),
        (404, "not_found_error", "model: claude-x", ModelNotFound, "does not know the model"),
        (413, "request_too_large", "big", PayloadTooLarge, "too large"),
        (413, "", "", PayloadTooLarge, "too large"),
        (422, "invalid_request_error", "", InvalidRequest, "without a reason"),
        (429, "rate_limit_error", "slow", Overloaded, "had enough requests"),
        (500, "api_error", "at /srv/secret", EngineFailed, "HTTP status 500"),
        (503, "", "", Overloaded, "busy"),
        (504, "timeout_error", "slow", EngineFailed, "HTTP status 504"),
        (529, "overloaded_error", "Overloaded", Overloaded, "busy"),
        (529, "", "", Overloaded, "busy"),
        (418, "teapot_error", "short and stout", EngineFailed, "HTTP status 418"),
    ],
)
def test_refusal_says_whose_turn_it_is(status, kind, said, error, sentence):
    body = body_of(kind, said) if kind else b"<html>"
    found = refusal(status, {"retry-after": "7"}, body)
    assert type(found) is error
    assert sentence in found.message
    assert not ({"sk-1", "/srv/secret"} & set(found.message.split()))
    assert found.retry_after_seconds == (7 if error is Overloaded else None)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"error": "no"}', b'{"error": {"type": 1}}']
)
def test_error_of_another_form_is_read_by_its_status(body):
    assert type(refusal(429, {}, body)) is Overloaded


def test_message_of_a_refusal_is_one_short_line():
    found = refusal(400, {}, body_of("invalid_request_error", "a\nb\x1b[0m" + "x" * 1000))
    assert found.message.startswith("a b [0m")
    assert len(found.message) == 300


def test_model_list_tells_what_a_model_can():
    entries = [scripts.model_entry("a"), scripts.adaptive_entry("b"), {"id": "c"}, {"id": 1}, 7]
    listed, after = read_page(json.dumps({"data": entries, "has_more": False}).encode())
    a, b, c = listed
    assert after == ""
    assert (a.context_tokens, a.output_tokens_max, a.images, a.schemas) == (
        *(200_000, 64_000),
        *(True, True),
    )
    assert (a.adaptive, a.budgeted, a.thinking_off, a.efforts) == (False, True, True, frozenset())
    assert (b.adaptive, b.budgeted) == (True, False)
    assert b.efforts == {"low", "medium", "high", "xhigh", "max"}
    assert (a.takes_sampling, b.takes_sampling, c.takes_sampling) == (True, False, True)
    assert c == ModelFacts("c")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"null"])
def test_page_that_is_no_list_is_no_api(answer):
    with pytest.raises(EngineStartFailed, match="is --endpoint right"):
        read_page(answer)


def test_stop_reasons_go_both_ways():
    for finish, reason in STOP_OF_FINISH.items():
        assert FINISH_OF_STOP[reason] is finish
    assert set(STOP_OF_FINISH) == set(FinishReason)


def test_huge_deltas_fit_into_frames():
    """Control characters are the worst: each takes six bytes as JSON."""
    blocks = [
        {"type": "thinking", "thinking": "\x01" * 30_000, "signature": "s" * 200_000},
        {"type": "redacted_thinking", "data": "d" * 200_000},
        {"type": "text", "text": "\x01" * 100_000},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "\x01" * 30_000}},
    ]
    sink = RecordingSink()
    stream = MessageStream(sink)
    stream.feed(scripts.event("message_start", message={}))
    for index, block in enumerate(blocks):
        stream.feed(scripts.event("content_block_start", index=index, content_block=block))
        stream.feed(scripts.event("content_block_stop", index=index))
    sizes = [len(part.encode() if isinstance(part, str) else part.data) for part in sink.parts]
    assert max(sizes) <= FRAME_BYTES_MAX
    deltas = [choice["delta"] for choice in sink.choices]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "\x01" * 30_000
    thoughts = [one for delta in deltas for one in delta.get("aimo", {}).get("thinking_blocks", ())]
    assert "".join(one.get("signature", "") for one in thoughts) == "s" * 200_000
    assert "".join(one.get("data", "") for one in thoughts) == "d" * 200_000
    assert sink.written == "\x01" * 100_000


def test_answer_put_together_is_bounded(monkeypatch):
    monkeypatch.setattr(whole, "CHARACTERS_MAX", 100)
    collected = whole.WholeMessage(RecordingSink())
    collected.text("x" * 100)
    with pytest.raises(EngineFailed, match="longer than 100"):
        collected.text("x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed: Extra inputs"),
        ({"max_tokens": 0}, "max_tokens: Field required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unexpected role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "white"),
        ({"temperature": 1.5}, "range: 0..1"),
        ({"tool_choice": {"type": "auto"}}, "while providing tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "must be greater than"),
    ],
)
def test_stand_in_objects_as_the_api_does(change, said):
    """Or else passing its rules would prove nothing."""
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    assert objection(body) == ""
    assert said in objection(body | change)
