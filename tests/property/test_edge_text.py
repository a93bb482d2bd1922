"""Whatever a model says arrives, through the byte templates and back."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason, RequestId
from aimo_node.edge.json_body import decode_object
from aimo_node.edge.openai.chunks import DONE, ChunkWriter, SseRenderer
from aimo_node.edge.openai.whole import Completion
from aimo_node.errors import EngineFailed, InvalidMessageFormat

REQUEST = RequestId(bytes(range(16)))
STOP = Finish(FinishReason.STOP, Usage(1, 1))
texts = st.text(st.characters(exclude_categories=("Cs",)))
batches = st.lists(st.lists(texts, min_size=1, max_size=5), max_size=5)


def events_of(stream: bytes) -> list[bytes]:
    """The data of each event, read as the standard says: CR, LF and CRLF end lines."""
    lines = stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines[-1] == ""
    events = [line for line in lines if line]
    assert all(line.startswith("data: ") for line in events)
    assert lines.count("") == len(events) + 1
    return [line.removeprefix("data: ").encode() for line in events]


@given(batches, st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_text_arrives_identical_through_a_stream(said, model):
    render = SseRenderer(ChunkWriter(REQUEST, model, 1)).render
    stream = b"".join(render(batch) for batch in said) + render([STOP])
    assert stream.endswith(DONE)
    *chunks, done = events_of(stream)
    assert done == b"[DONE]"
    decoded = [json.loads(chunk) for chunk in chunks]
    assert {chunk["model"] for chunk in decoded} == {model}
    deltas = [chunk["choices"][0]["delta"].get("content") for chunk in decoded[:-1]]
    assert deltas == ([text for batch in said for text in batch] or [""])
    assert decoded[-1]["choices"][0]["finish_reason"] == "stop"


@given(st.lists(texts, max_size=8))
def test_any_text_arrives_identical_as_a_whole(said):
    completion = Completion(choices_max=1, bytes_max=1_000_000)
    for text in said:
        completion.add(text)
    answer = json.loads(completion.write(REQUEST, "m", 1, STOP))
    assert answer["choices"][0]["message"]["content"] == "".join(said)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value, indent=1).encode()))
def test_any_bytes_as_a_delta_give_whole_events_or_the_engines_failure(data):
    for wrapped in (
        data,
        b'[{"index":0,"delta":%b}]' % data,
        b'[{"index":0,"delta":{"a":%b}}]' % data,
    ):
        try:
            (chunk,) = ChunkWriter(REQUEST, "m", 1).write([JsonDelta(wrapped)])
        except EngineFailed:
            continue
        (event,) = events_of(chunk)
        assert json.loads(event)["model"] == "m"


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_a_body_are_an_object_or_refused(data):
    with contextlib.suppress(InvalidMessageFormat):
        assert isinstance(decode_object(data), dict)
