"""An answer with a tool call ends only if the arguments are what they have to be."""

import json

import pytest

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.errors import EngineFailed
from aimo_node.testing.recording_sink import RecordingSink
from providers.vllm.tool_arguments import ARGUMENTS_CHARACTERS_MAX, CheckedToolCalls

CALLS = FinishReason.TOOL_CALLS


def delta(text, index=0, choice=0, **function):
    call = {"index": index, "function": {"arguments": text, **function}}
    return json.dumps([{"index": choice, "delta": {"tool_calls": [call]}}]).encode()


def whole(text):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return json.dumps([{"index": 0, "message": message, "finish_reason": None}]).encode()


def said(*pieces, reason=CALLS):
    sink = RecordingSink()
    checked = CheckedToolCalls(sink)
    for piece in pieces:
        checked.json(piece)
    checked.finish(reason, Usage(1, 2))
    return sink


BAD = ['{"x": Infinity}', '{"x": NaN}', '{"x": -Infinity}', '{"x": 1', "[1]", '"x"', "nothing",
       '{"x": 1} {"y": 2}', "{'x': 1}", "null"]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_answer_with_bad_arguments_does_not_end(text):
    for pieces in ([delta(text[:3]), delta(text[3:])], [whole(text)]):
        with pytest.raises(EngineFailed, match="not a JSON object"):
            said(*pieces)


@pytest.mark.parametrize("text", ['{"city": "Paris"}', "{}", ' {"x": [1.5, null, "é"]}\n'])
def test_good_arguments_pass_unchanged(text):
    streamed = said(delta(text[:4], name="f"), delta(text[4:]))
    assert [part.data for part in streamed.parts[:-1]] == [
        delta(text[:4], name="f"),
        delta(text[4:]),
    ]
    assert streamed.end.reason is CALLS
    assert said(whole(text)).parts[0].data == whole(text)


def test_every_call_and_every_choice_is_checked():
    with pytest.raises(EngineFailed):
        said(delta("{}"), delta("{", index=1))
    with pytest.raises(EngineFailed):
        said(delta("{}"), delta("{", choice=1))


def test_arguments_cut_off_by_the_token_limit_are_the_consumers_choice():
    assert said(delta('{"city": "Par'), reason=FinishReason.LENGTH).end is not None


def test_call_without_arguments_gets_an_empty_object():
    """Some models call a function that takes nothing so; nobody reads an empty text as JSON."""
    streamed = said(delta("", name="now"))
    assert streamed.choices[-1]["delta"]["tool_calls"] == [
        {"index": 0, "function": {"arguments": "{}"}}
    ]
    (choice,) = said(whole("")).choices
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_text_passes_through():
    sink = RecordingSink()
    checked = CheckedToolCalls(sink)
    checked.text("hello")
    checked.finish(FinishReason.STOP, Usage())
    assert sink.written == "hello"


@pytest.mark.parametrize(
    "pieces",
    [
        [delta("x" * 1000)] * (ARGUMENTS_CHARACTERS_MAX // 1000 + 1),
        [delta("", index=number) for number in range(1000)],
    ],
    ids=["characters", "calls"],
)
def test_arguments_without_end_are_cut_off(pieces):
    with pytest.raises(EngineFailed, match="without end"):
        said(*pieces)


async def test_congestion_is_that_of_the_sink_behind():
    sink = RecordingSink()
    checked = CheckedToolCalls(sink)
    assert not checked.congested
    sink.stall()
    assert checked.congested
    sink.flow()
    await checked.drain()
