"""However the bytes of an upstream are cut, what comes out is the same; nonsense stays harmless."""

import contextlib
import json

import h11
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.errors import EngineFailed
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream_scripts import DONE, chunk, event, text, usage
from providers.http.body import ChunkedBody
from providers.openai.data import DataAnswer
from providers.openai.stream import AnswerStream
from providers.openai.whole import WholeAnswer, write_whole


def cut(data, sizes):
    position = 0
    for size in sizes:
        yield data[position : position + size]
        position += size
    yield data[position:]


@given(
    words=st.lists(st.text(min_size=1, max_size=20), max_size=10),
    sizes=st.lists(st.integers(1, 40), max_size=60),
)
def test_answer_does_not_depend_on_how_it_is_cut(words, sizes):
    data = b"".join([text(word) for word in words] + [chunk({}, "stop"), usage(3, 4), DONE])
    sink = RecordingSink()
    stream = AnswerStream(sink)
    for piece in cut(data, sizes):
        stream.feed(piece)
    assert stream.done
    sink.finish(*stream.end())
    assert sink.parts[:-1] == words


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_raise_nothing_but_engine_failed(pieces):
    stream = AnswerStream(RecordingSink())
    try:
        for piece in pieces:
            stream.feed(b"data: " + piece + b"\n\n")
        stream.end()
    except EngineFailed:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


calls = st.fixed_dictionaries(
    {}, optional={"index": json_values, "id": json_values, "function": json_values}
)
deltas = st.fixed_dictionaries(
    {},
    optional={"content": json_values, "tool_calls": json_values | st.lists(calls, max_size=3)},
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "delta": json_values | deltas,
            "message": json_values,
            "text": json_values,
            "index": json_values,
            "finish_reason": json_values | st.just("stop"),
            "logprobs": json_values,
        },
    )
)
def test_any_choice_raises_nothing_but_engine_failed(choice):
    sink = RecordingSink()
    whole = WholeAnswer(sink)
    stream = AnswerStream(whole)
    with contextlib.suppress(EngineFailed):
        stream.feed(event({"choices": [choice]}))
        whole.finish(*stream.end())
    with contextlib.suppress(EngineFailed):
        write_whole(event({"choices": [choice]})[6:], RecordingSink())


entries = st.fixed_dictionaries(
    {},
    optional={
        "index": json_values,
        "embedding": json_values | st.lists(st.floats(allow_nan=False, allow_infinity=False)),
        "b64_json": json_values,
        "url": json_values,
    },
)


@given(data=json_values | st.lists(entries | json_values, max_size=4), inputs=st.integers(0, 3))
def test_any_data_is_an_array_of_objects_or_engine_failed(data, inputs):
    body = json.dumps({"data": data, "usage": data}).encode()
    try:
        answer = DataAnswer(body, inputs)
        for _ in answer.read():
            pass
    except EngineFailed:
        return
    written = json.loads(answer.data())
    assert written
    assert all(isinstance(entry, dict) and entry for entry in written)


@given(
    pieces=st.lists(st.binary(max_size=30), max_size=10),
    sizes=st.lists(st.integers(1, 20), max_size=60),
    extension=st.sampled_from([b"", b";name=value", b" "]),
)
def test_chunked_body_is_what_was_chunked(pieces, sizes, extension):
    whole = [b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece]
    data = b"".join(whole) + b"0\r\ntrailer: x\r\n\r\nleftover"
    body = ChunkedBody()
    found = b"".join(body.feed(piece) for piece in cut(data, sizes))
    assert found == b"".join(pieces)
    assert body.done
    body.close()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_chunked_decoder_never_accepts_what_h11_refuses(pieces):
    data = b"".join(pieces)
    body = ChunkedBody()
    try:
        ours = body.feed(data)
    except EngineFailed:
        return
    if body.done:
        assert ours == _by_h11(data)


def _by_h11(data):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    found = b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Data):
            found += event.data
        elif isinstance(event, h11.EndOfMessage):
            return found
