"""What a Chat Completions request may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aimo_node.edge.openai.chat import read_call
from aimo_node.errors import InvalidRequest

USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [USER], **fields}


def test_a_plain_request_is_not_streamed_and_wants_one_choice():
    call = read_call(chat())
    assert (call.model, call.stream, call.include_usage, call.choices_max) == ("m", False, False, 1)


def test_everything_is_passed_on_also_what_is_not_known_here():
    value = chat(temperature=0.5, max_completion_tokens=5, top_k=40, aimo={"thinking": [1]})
    assert json.loads(read_call(value).body) == value


def test_stream_options_and_choices_are_read():
    call = read_call(chat(stream=True, stream_options={"include_usage": True}, n=3))
    assert (call.stream, call.include_usage, call.choices_max) == (True, True, 3)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, USER],
        [{"role": "developer", "content": "Be brief.", "name": "dev"}, USER],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [USER, {"role": "assistant", "tool_calls": [CALL]}],
        [{"role": "tool", "tool_call_id": "call_1", "content": "3"}],
        [{"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "3"}]}],
        [{"role": "function", "name": "add", "content": "3"}],
        # a client of Anthropic's dialect sends a system message after the user's
        [USER, {"role": "system", "content": "Be brief."}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:…", "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                ],
            }
        ],
        [{**USER, "reasoning_content": "unknown to us"}],
    ],
)
def test_messages_of_all_roles_are_accepted(messages):
    read_call(chat(*messages))


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "x"},
        {"stop": ["x", "y"]},
        {"tool_choice": "auto", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "add"}}, "tools": [TOOL]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"temperature": 0, "top_p": 1, "n": 8, "seed": -1, "logit_bias": {"50256": -100}},
        {"temperature": None, "stream": None, "stop": None, "tools": None, "max_tokens": None},
        {"logprobs": True, "top_logprobs": 20, "user": "u", "parallel_tool_calls": False},
    ],
)
def test_parameters_in_their_ranges_are_accepted(fields):
    read_call(chat(**fields))


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"messages": [USER]}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "", "messages": [USER]}, "model"),
        ({"model": 5, "messages": [USER]}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": "Hi"}, "messages"),
        (chat("Hi"), "messages[0]"),
        (chat({"content": "Hi"}), "messages[0].role"),
        (chat({"role": "user"}), "messages[0].content"),
        (chat(USER, {"role": "user", "content": None}), "messages[1].content"),
        (chat({"role": "robot", "content": "Hi"}), "messages[0].role"),
        (chat({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (chat({"role": "user", "content": [{"type": "smell"}]}), "messages[0].content[0].type"),
        (chat({"role": "tool", "content": "3"}), "messages[0].tool_call_id"),
        (
            chat({"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}),
            "messages[0].tool_calls[0].id",
        ),
        (chat(temperature=2.5), "temperature"),
        (chat(temperature="hot"), "temperature"),
        (chat(top_p=-0.1), "top_p"),
        (chat(presence_penalty=3), "presence_penalty"),
        (chat(frequency_penalty=-3), "frequency_penalty"),
        (chat(n=0), "n"),
        (chat(n=9), "n"),
        (chat(n=1.5), "n"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_completion_tokens=-1), "max_completion_tokens"),
        (chat(top_logprobs=21), "top_logprobs"),
        (chat(logit_bias={"1": 101}), "logit_bias"),
        (chat(stop=["x"] * 17), "stop"),
        (chat(stream="yes"), "stream"),
        (chat(stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        (chat(tools=[{"type": "function"}]), "tools[0].function"),
        (chat(tools=[{"type": "hammer"}]), "tools[0].type"),
        (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
        (chat(tool_choice="maybe"), "tool_choice"),
        (chat(response_format="json"), "response_format"),
    ],
)
def test_offending_field_is_named_by_its_path(value, param):
    with pytest.raises(InvalidRequest) as caught:
        read_call(value)
    assert caught.value.param == param
