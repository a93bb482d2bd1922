"""The translation does what the golden vectors say, in both directions."""

import json
from pathlib import Path

import msgspec
import pytest

from aimo_node.domain.answer import Finish, JsonDelta
from aimo_node.errors import CodedError
from aimo_node.testing.anthropic_rules import objection
from aimo_node.testing.recording_sink import RecordingSink
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.request import Rules, counted, translate
from providers.anthropic.stream import MessageStream
from providers.anthropic.whole import WholeMessage, write_whole

FOLDER = Path(__file__).parents[2] / "vectors" / "dialects" / "anthropic"
REQUESTS = sorted((FOLDER / "requests").glob("*.json"))
STREAMS = sorted((FOLDER / "streams").glob("*.json"))
ANSWERS = sorted((FOLDER / "answers").glob("*.json"))


def stem(path):
    return path.stem


def test_there_are_vectors():
    assert len(REQUESTS) >= 50
    assert len(STREAMS) >= 25
    assert {path.stem for path in STREAMS} == {path.stem for path in FOLDER.glob("streams/*.sse")}


@pytest.mark.parametrize("path", REQUESTS, ids=stem)
def test_request_is_translated_as_written_down(path):
    case = json.loads(path.read_text("utf-8"))
    facts = dict(case.get("facts", {}))
    if "efforts" in facts:
        facts["efforts"] = frozenset(facts["efforts"])
    rules = Rules(**case.get("rules", {}))
    before = json.dumps(case["canonical"])
    if "refused" in case:
        with pytest.raises(CodedError) as caught:
            translate(case["canonical"], ModelFacts("claude-x", **facts), rules)
        assert type(caught.value).__name__ == case["refused"]["error"]
        assert caught.value.param == case["refused"]["param"]
    else:
        found = translate(case["canonical"], ModelFacts("claude-x", **facts), rules)
        assert found.body == case["messages"]
        assert list(found.left_out) == case["left_out"]
        assert objection(found.body) == ""
        assert objection({"max_tokens": 1 << 20, **counted(found.body)}) == ""
    assert json.dumps(case["canonical"]) == before, "what was given is not changed"


@pytest.mark.parametrize("path", STREAMS, ids=stem)
def test_stream_is_read_as_written_down(path):
    case = json.loads(path.read_text("utf-8"))
    sink = RecordingSink()
    assert failure_of(lambda: read(path, sink)) == case.get("error")
    assert written(sink) == case["sink"]


@pytest.mark.parametrize("path", [path for path in STREAMS if "broken" not in path.stem], ids=stem)
def test_stream_put_together_is_its_whole_answer(path):
    """Nothing of a stream is lost when it is collected, and it is one part."""
    streamed, whole = RecordingSink(), RecordingSink()
    read(path, streamed)
    collected = WholeMessage(whole)
    read(path, collected)
    assert whole.end == streamed.end
    message = whole.choices[0]["message"] if whole.choices else {"content": whole.written}
    assert (message["content"] or "") == streamed.written
    deltas = [choice["delta"] for choice in streamed.choices]
    thinking = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert message.get("reasoning_content", "") == thinking
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    arguments = ["" for call in calls if "id" in call]
    for call in calls:
        arguments[call["index"]] += call["function"]["arguments"]
    found = message.get("tool_calls", [])
    assert [call["function"]["arguments"] for call in found] == arguments
    assert all(msgspec.json.decode(text) is not None for text in arguments)


@pytest.mark.parametrize("path", ANSWERS, ids=stem)
def test_whole_answer_is_read_as_written_down(path):
    case = json.loads(path.read_text("utf-8"))
    sink = RecordingSink()
    body = json.dumps(case["message"]).encode()
    assert failure_of(lambda: write_whole(body, sink)) == case.get("error")
    assert written(sink) == case["sink"]


def test_answer_with_thinking_goes_back_as_it_came():
    """The API refuses thinking that was changed or moved."""
    case = json.loads((FOLDER / "answers" / "calls.json").read_text("utf-8"))
    sink = RecordingSink()
    write_whole(json.dumps(case["message"]).encode(), sink)
    message = sink.choices[0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "done"}
        for call in message["tool_calls"]
    ]
    asked = [{"role": "user", "content": "go"}, message, *results]
    body = translate({"messages": asked}, ModelFacts("claude-x"), Rules()).body
    assert body["messages"][1] == {"role": "assistant", "content": case["message"]["content"]}


def read(path, sink):
    stream = MessageStream(sink)
    stream.feed(path.with_suffix(".sse").read_bytes())
    sink.finish(*stream.end())


def failure_of(action):
    try:
        action()
    except CodedError as error:
        return type(error).__name__
    return None


def written(sink):
    """What the sink got, as the vectors write it."""
    return [as_written(part) for part in sink.parts]


def as_written(part):
    if isinstance(part, JsonDelta):
        return {"json": json.loads(part.data)}
    if isinstance(part, Finish):
        usage = part.usage
        counts = [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens]
        return {"finish": part.reason.text, "usage": counts}
    return {"text": part}
