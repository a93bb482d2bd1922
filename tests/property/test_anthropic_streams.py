"""However a Messages stream is cut, what comes out is the same; nonsense stays harmless."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.errors import CodedError, EngineFailed, Overloaded
from aimo_node.testing import anthropic_upstream as scripts
from aimo_node.testing.recording_sink import RecordingSink
from providers.anthropic.stream import MessageStream
from providers.anthropic.whole import WholeMessage, write_whole

VECTORS = Path(__file__).parents[1] / "vectors" / "dialects" / "anthropic" / "streams"
names = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=8)
texts = st.text(max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
blocks = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
        st.fixed_dictionaries(
            {"type": st.just("tool_use"), "id": names, "name": names, "input": objects}
        ),
        st.fixed_dictionaries({"type": st.just("thinking"), "thinking": texts, "signature": names}),
        st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": names}),
    ),
    max_size=6,
)


def cut(data, sizes):
    position = 0
    for size in sizes:
        yield data[position : position + size]
        position += size
    yield data[position:]


def read(pieces):
    """What came out, and the error if there was one."""
    sink = RecordingSink()
    stream = MessageStream(sink)
    try:
        for piece in pieces:
            stream.feed(piece)
        sink.finish(*stream.end())
    except CodedError as error:
        return sink, str(error)
    return sink, None


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.sse")), ids=lambda path: path.stem)
def test_every_cut_in_two_and_into_bytes_gives_the_same(path):
    data = path.read_bytes()
    sink, error = read([data])
    cuts = [[data[:place], data[place:]] for place in range(0, len(data), 7)]
    for pieces in [*cuts, [bytes([byte]) for byte in data]]:
        found, failure = read(pieces)
        assert found.parts == sink.parts
        assert failure == error


@given(blocks=blocks, sizes=st.lists(st.integers(1, 60), max_size=80), crlf=st.booleans())
def test_answer_does_not_depend_on_how_it_is_cut(blocks, sizes, crlf):
    data = b"".join(scripts.events_of(scripts.message(blocks, "end_turn")))
    data = data.replace(b"\n", b"\r\n") if crlf else data
    sink, error = read(cut(data, sizes))
    assert error is None
    assert sink.parts == read([data])[0].parts
    assert sink.written == "".join(block.get("text", "") for block in blocks)
    deltas = [choice["delta"] for choice in sink.choices]
    arguments = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        grown = arguments.get(call["index"], "") + call["function"]["arguments"]
        arguments[call["index"]] = grown
    inputs = [block["input"] for block in blocks if block["type"] == "tool_use"]
    assert [json.loads(text) for text in arguments.values()] == inputs


@given(blocks=blocks)
def test_streamed_and_whole_answers_mean_the_same(blocks):
    message = scripts.message(blocks, "end_turn")
    streamed, whole = RecordingSink(), RecordingSink()
    collected = WholeMessage(streamed)
    stream = MessageStream(collected)
    for data in scripts.events_of(message):
        stream.feed(data)
    collected.finish(*stream.end())
    write_whole(json.dumps(message).encode(), whole)
    assert comparable(streamed) == comparable(whole)


def comparable(sink):
    """Arguments as values: a stream keeps the white space that the model wrote."""
    for choice in sink.choices:
        message = choice["message"]
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return message, sink.end
    return sink.written, sink.end


@given(blocks=blocks, kept=st.floats(0, 1))
def test_stream_that_breaks_off_anywhere_is_never_whole(blocks, kept):
    events = list(scripts.events_of(scripts.message(blocks, "end_turn")))
    sink, error = read(events[: int(kept * (len(events) - 1))])
    assert error is not None
    assert sink.end is None


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_raise_nothing_but_engine_failed(pieces):
    stream = MessageStream(RecordingSink())
    with contextlib.suppress(EngineFailed):
        for piece in pieces:
            stream.feed(b"data: " + piece + b"\n\n")
        stream.end()


kinds = st.sampled_from(
    [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop", "error", "ping", "other"),
    ]
)
inner = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            [
                *("text", "tool_use", "thinking", "redacted_thinking", "text_delta"),
                *("input_json_delta", "thinking_delta", "signature_delta", "overloaded_error"),
            ]
        )
        | json_values,
        "text": json_values,
        "id": json_values | names,
        "name": json_values | names,
        "input": json_values,
        "thinking": json_values,
        "signature": json_values,
        "data": json_values,
        "partial_json": json_values,
        "stop_reason": json_values | st.just("end_turn"),
        "stop_details": json_values,
        "usage": json_values,
        "message": json_values,
    },
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"type": kinds | json_values},
            optional={
                "index": st.integers(0, 2) | json_values,
                "message": inner | json_values,
                "content_block": inner | json_values,
                "delta": inner | json_values,
                "error": inner | json_values,
                "usage": json_values,
            },
        ),
        max_size=12,
    )
)
def test_any_events_raise_nothing_but_our_errors(events):
    whole = WholeMessage(RecordingSink())
    stream = MessageStream(whole)
    with contextlib.suppress(CodedError):
        stream.feed(scripts.event("message_start"))
        for event in events:
            stream.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
        whole.finish(*stream.end())


@given(
    st.fixed_dictionaries(
        {"content": st.lists(inner | json_values, max_size=4) | json_values},
        optional={"usage": json_values, "stop_reason": json_values, "type": json_values},
    )
)
def test_any_message_raises_nothing_but_engine_failed(message):
    with contextlib.suppress(EngineFailed, Overloaded):
        write_whole(json.dumps(message).encode(), RecordingSink())
