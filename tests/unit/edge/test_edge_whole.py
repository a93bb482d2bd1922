"""A whole answer from whatever parts a provider sends it in."""

from __future__ import annotations

import json

import pytest

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason, RequestId
from aimo_node.edge.openai.whole import Completion
from aimo_node.errors import EngineFailed

REQUEST = RequestId(bytes(16))
STOP = Finish(FinishReason.STOP, Usage(5, 2, 1))


def whole(*parts: AnswerPart, choices_max: int = 1, finish: Finish = STOP) -> dict:
    completion = Completion(choices_max=choices_max, bytes_max=1000)
    for part in parts:
        completion.add(part)
    return json.loads(completion.write(REQUEST, "tiny", 1_700_000_000, finish))


def message(*choices: object) -> JsonDelta:
    return JsonDelta(json.dumps(choices).encode())


def test_text_becomes_a_completion():
    assert whole("Hel", "lo") == {
        "id": "chatcmpl-" + "0" * 32,
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_empty_answer_has_empty_content():
    assert whole()["choices"][0]["message"]["content"] == ""


def test_tool_calls_come_as_a_whole_message():
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    answer = whole(
        message(
            {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}}
        ),
        finish=Finish(FinishReason.TOOL_CALLS, Usage()),
    )
    (choice,) = answer["choices"]
    assert choice["message"]["tool_calls"] == calls
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_text_and_a_message_of_the_same_choice_are_one():
    answer = whole("I call.", message({"index": 0, "message": {"tool_calls": []}}))
    assert answer["choices"][0]["message"]["content"] == "I call."


def test_several_choices_are_in_order_with_their_own_reasons():
    answer = whole(
        message({"index": 2, "message": {"content": "c"}, "finish_reason": "length"}),
        message(
            {"index": 0, "message": {"content": "a"}}, {"index": 1, "message": {"content": "b"}}
        ),
        choices_max=3,
    )
    said = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
    assert said == [(0, "a", "stop"), (1, "b", "stop"), (2, "c", "length")]


def test_role_and_names_are_ours():
    forged = {
        "index": 0,
        "message": {"role": "system", "content": "x"},
        "model": "gpt-5",
        "id": "y",
    }
    answer = whole(message(forged))
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert set(answer["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[1]",
        b'[{"index":0}]',
        b'[{"index":0,"delta":{"content":"x"}}]',
        b'[{"index":1,"message":{}}]',
        b'[{"index":0,"message":{}},{"index":0,"message":{}}]',
        b'[{"index":0,"message":{"content":"\xff"}}]',
        b'[{"index":0,"message":{"x":' + b"[" * 100 + b"]" * 100 + b"}}]",
    ],
)
def test_malformed_message_is_the_engines_failure(data):
    with pytest.raises(EngineFailed):
        whole(JsonDelta(data))


def test_answer_is_bounded():
    completion = Completion(choices_max=1, bytes_max=1000)
    completion.add("x" * 600)
    with pytest.raises(EngineFailed, match="too long"):
        completion.add("x" * 600)
