"""Whole answers: read from one body, or put together from a stream."""

import json

import pytest

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.testing.recording_sink import RecordingSink
from providers.answers import PIECE_CHARACTERS_MAX
from providers.openai.whole import WholeAnswer, write_whole


def body(*choices, **more):
    return json.dumps({"choices": list(choices), **more}).encode()


def choice(reason="stop", index=0, **message):
    return {"index": index, "message": {"role": "assistant", **message}, "finish_reason": reason}


def test_plain_answer_becomes_text():
    sink = RecordingSink()
    write_whole(body(choice(content="hi"), usage={"prompt_tokens": 2}), sink)
    assert sink.parts[0] == "hi"
    assert sink.end.usage == Usage(2, 0)


def test_long_plain_answer_is_split():
    sink = RecordingSink()
    write_whole(body(choice(content="x" * (PIECE_CHARACTERS_MAX + 1))), sink)
    assert [len(part) for part in sink.parts[:-1]] == [PIECE_CHARACTERS_MAX, 1]


def test_empty_answer_is_only_an_end():
    sink = RecordingSink()
    write_whole(body(choice(content=None)), sink)
    assert len(sink.parts) == 1


def test_tool_calls_travel_as_choices_without_the_reason():
    sink = RecordingSink()
    write_whole(body(choice("tool_calls", tool_calls=[{"id": "c"}])), sink)
    assert sink.choices[0]["message"]["tool_calls"] == [{"id": "c"}]
    assert sink.choices[0]["finish_reason"] is None
    assert sink.end.reason is FinishReason.TOOL_CALLS


def test_several_choices_stay_together():
    sink = RecordingSink()
    write_whole(body(choice(content="a"), choice("length", 1, content="b")), sink)
    assert [one["finish_reason"] for one in sink.choices] == [None, "length"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [5]}',
        body(choice("abort", content="a")),
        body(choice(None, content="a")),
        body({"index": 0, "finish_reason": "stop"}),
        b'{"error": {"message": "boom"}, "choices": []}',
    ],
)
def test_what_is_no_answer_is_a_failure(raw):
    with pytest.raises(EngineFailed):
        write_whole(raw, RecordingSink())


def test_collected_text_is_given_on_in_one():
    sink = RecordingSink()
    whole = WholeAnswer(sink)
    whole.text("a")
    whole.text("b")
    assert not sink.parts
    whole.finish(FinishReason.STOP, Usage(1, 2))
    assert sink.parts[0] == "ab"


def test_collected_tool_calls_are_put_together():
    sink = RecordingSink()
    whole = WholeAnswer(sink)
    for piece in (
        {"index": 0, "id": "c0", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 1, "id": "c1", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ):
        delta = {"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}
        whole.json(json.dumps([delta]).encode())
    whole.finish(FinishReason.TOOL_CALLS, Usage(1, 2))
    assert sink.choices[0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_text_before_and_after_a_json_delta_stays_in_order():
    sink = RecordingSink()
    whole = WholeAnswer(sink)
    whole.text("a")
    delta = {"content": "b", "reasoning": "hm"}
    whole.json(json.dumps([{"index": 0, "delta": delta, "finish_reason": None}]).encode())
    whole.text("c")
    whole.finish(FinishReason.STOP, Usage())
    assert sink.choices[0]["message"]["content"] == "abc"
    assert sink.choices[0]["message"]["reasoning"] == "hm"


def test_collected_choices_keep_logprobs_and_reasons():
    sink = RecordingSink()
    whole = WholeAnswer(sink)
    whole.text("a")
    for content, reason in (("x", None), ("y", "length")):
        logprobs = {"content": [{"token": content}]}
        one = {"index": 1, "delta": {"content": content}, "logprobs": logprobs}
        whole.json(json.dumps([{**one, "finish_reason": reason}]).encode())
    whole.finish(FinishReason.STOP, Usage())
    first, second = sink.choices
    assert (first["message"]["content"], first["finish_reason"]) == ("a", None)
    assert (second["message"]["content"], second["finish_reason"]) == ("xy", "length")
    assert second["logprobs"] == {"content": [{"token": "x"}, {"token": "y"}]}
