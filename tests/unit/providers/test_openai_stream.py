"""Streams in OpenAI's dialect: what becomes text, what JSON, and what is no answer at all."""

import json

import pytest

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream_scripts import DONE, chunk, event, text, usage
from providers.answers import PIECE_CHARACTERS_MAX
from providers.openai.stream import EVENT_BYTES_MAX, AnswerStream

STOP = chunk({}, "stop")


def read(*pieces):
    sink = RecordingSink()
    stream = AnswerStream(sink)
    for piece in pieces:
        stream.feed(piece)
    sink.finish(*stream.end())
    return sink


def test_text_chunks_become_text():
    sink = read(chunk({"role": "assistant", "content": ""}), text("a"), text("b"), STOP, DONE)
    assert sink.parts[:-1] == ["a", "b"]
    assert sink.end.reason is FinishReason.STOP


def test_usage_comes_from_the_last_chunk():
    sink = read(text("a"), STOP, usage(7, 2), DONE)
    assert sink.end.usage == Usage(7, 2)


def test_cached_tokens_are_read():
    counted = {"prompt_tokens": 5, "completion_tokens": 1}
    counted["prompt_tokens_details"] = {"cached_tokens": 4}
    sink = read(text("a"), STOP, event({"choices": [], "usage": counted}), DONE)
    assert sink.end.usage == Usage(5, 1, 4)


def test_without_usage_chunks_are_counted_and_the_prompt_is_zero():
    assert read(text("a"), text("b"), STOP, DONE).end.usage == Usage(0, 2)


def test_nonsense_in_usage_counts_as_zero():
    bad = event({"choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": "many"}})
    assert read(text("a"), STOP, bad, DONE).end.usage == Usage(0, 0)


@pytest.mark.parametrize(
    "raw",
    [
        b'data:{"choices":[{"delta":{"content":"hi"},"index":0}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"hi"},"index":0}]}\r\n\r\n',
        b': comment\n\ndata: {"choices":[{"delta":{"content":"hi"}}]}\n\n',
        b'event: chunk\nid: 3\ndata: {"choices":[{"delta":{"content":"hi"}}]}\n\n',
        b'data: {"choices":[{"delta":\ndata: {"content":"hi"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"hi"},"x":1,"stop_reason":null}],"error":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"hi","tool_calls":[],"audio":null}}]}\n\n',
        b'data: {"choices":[{"text":"hi","index":0,"logprobs":null}]}\n\n',
    ],
    ids=["no-space", "crlf", "comment", "fields", "two-lines", "extras", "empties", "completions"],
)
def test_every_spelling_of_a_text_chunk_is_read(raw):
    assert read(raw, STOP, DONE).parts[:-1] == ["hi"]


@pytest.mark.parametrize(
    "pieces",
    [
        [b'data: {"choices":[{"delta":\n', b'data: {"content":"hi"}}]}\n\n'],
        [b"note", text("lost"), text("hi")],
        [b"data:\n\n", text("hi")],
    ],
    ids=["event-in-two-lines", "not-at-the-start-of-a-line", "empty-event"],
)
def test_piece_that_looks_like_a_whole_event_is_read_in_its_place(pieces):
    assert read(*pieces, STOP, DONE).parts[:-1] == ["hi"]


def test_last_event_without_blank_line_counts():
    assert read(text("a"), STOP.rstrip(b"\n") + b"\n").written == "a"


def test_end_without_done_is_an_end_if_there_is_a_reason():
    assert read(text("a"), STOP).end.reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("reason", "meant"),
    [
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
    ],
)
def test_reasons_are_understood(reason, meant):
    assert read(text("a"), chunk({"content": "b"}, reason), DONE).end.reason is meant


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [DONE],
        [text("a"), DONE],
        [text("a")],
        [text("a"), chunk({}, "abort"), DONE],
        [text("a"), chunk({}, 5), DONE],
        [text("a"), event({"error": {"message": "boom"}}), DONE],
        [text("a"), event({"error": "boom"}), STOP, DONE],
        [text("a"), b"data: {nonsense\n\n", STOP, DONE],
        [text("a"), b'data: "text"\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": 5}\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": [5]}\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": [{"index": -1, "delta": {}}]}\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": [{"index": "0", "delta": {}}]}\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": [{"delta": "x"}]}\n\n', STOP, DONE],
        [text("a"), b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', STOP, DONE],
        [text("a"), chunk({"content": "b"}, index=1), STOP, DONE],
        [text("a"), b"data: " + b"x" * EVENT_BYTES_MAX, b"x"],
        [text("a"), *[b"data: " + b"x" * 60_000 + b"\n"] * 20],
    ],
    ids=[
        "nothing",
        "only-done",
        "no-reason",
        "silent-end",
        "abort",
        "odd-reason",
        "error-then-done",
        "error-text",
        "not-json",
        "no-object",
        "choices-no-list",
        "choice-no-object",
        "negative-index",
        "index-no-number",
        "delta-no-object",
        "not-utf-8",
        "second-choice-unfinished",
        "endless-line",
        "endless-event",
    ],
)
def test_what_is_no_whole_answer_is_a_failure(pieces):
    with pytest.raises(EngineFailed):
        read(*pieces)


def test_nothing_after_done_is_read():
    sink = RecordingSink()
    stream = AnswerStream(sink)
    stream.feed(text("a") + STOP + DONE + text("b"))
    assert stream.done
    assert sink.written == "a"


def test_tool_call_deltas_travel_as_choices_without_the_reason():
    call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}
    sink = read(chunk(call), chunk({}, "tool_calls"), DONE)
    assert sink.choices == [{"index": 0, "delta": call, "finish_reason": None}]
    assert sink.end.reason is FinishReason.TOOL_CALLS


def test_reason_in_the_same_chunk_as_a_tool_call_is_kept_apart():
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    sink = read(chunk(call, "tool_calls"), DONE)
    assert sink.choices[0]["finish_reason"] is None
    assert sink.end.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal"])
def test_what_is_more_than_text_travels_as_json(field):
    sink = read(chunk({field: "hm"}), text("a"), STOP, DONE)
    assert sink.choices == [{"index": 0, "delta": {field: "hm"}, "finish_reason": None}]
    assert sink.written == "a"


def test_logprobs_keep_their_text_beside_them():
    logprobs = {"content": [{"token": "a", "logprob": -0.1}]}
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": logprobs, "finish_reason": None}
    sink = read(event({"choices": [choice]}), STOP, DONE)
    assert sink.choices == [choice]
    assert sink.written == ""


def test_other_choices_carry_their_own_reason():
    sink = read(text("a"), chunk({"content": "b"}, index=1), chunk({}, "length", 1), STOP, DONE)
    assert sink.written == "a"
    assert [choice["finish_reason"] for choice in sink.choices] == [None, "length"]
    assert sink.end.reason is FinishReason.STOP


def test_vendor_fields_do_not_travel():
    raw = {"index": 0, "delta": {"reasoning": "hm"}, "matched_stop": 5, "finish_reason": None}
    sink = read(event({"choices": [raw], "id": "forged\n"}), STOP, DONE)
    assert set(sink.choices[0]) == {"index", "delta", "finish_reason"}


def test_long_text_is_split_to_fit_into_frames():
    long = "é" * (3 * PIECE_CHARACTERS_MAX + 1)
    sink = read(text(long), STOP, DONE)
    assert sink.written == long
    assert max(len(part) for part in sink.parts[:-1]) == PIECE_CHARACTERS_MAX


def test_line_breaks_in_deltas_stay_inside_json():
    sink = read(chunk({"reasoning": "a\nb\r\n\u2028"}), STOP, DONE)
    assert sink.choices[0]["delta"]["reasoning"] == "a\nb\r\n\u2028"


def test_null_delta_with_a_reason_is_an_end():
    ending = event({"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]})
    assert json.loads(ending[6:])["choices"][0]["delta"] is None
    assert read(text("a"), ending, DONE).written == "a"
