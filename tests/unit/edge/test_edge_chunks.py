"""Parts of an answer on the wire, byte by byte."""

from __future__ import annotations

import json

import pytest

from aimo_node.domain.answer import Finish, JsonDelta, Usage
from aimo_node.domain.ids import FinishReason, RequestId
from aimo_node.edge.openai.chunks import ChunkWriter, Frame, SseRenderer
from aimo_node.errors import EngineFailed, StreamInterrupted

REQUEST = RequestId(bytes.fromhex("00112233445566778899aabbccddeeff"))
HEAD = (
    b'data: {"id":"chatcmpl-00112233445566778899aabbccddeeff","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"tiny","choices":'
)
STOP = Finish(FinishReason.STOP, Usage(5, 2, 1))


def writer(**settings) -> ChunkWriter:
    return ChunkWriter(REQUEST, "tiny", 1_700_000_000, **settings)


def events_of(data: bytes) -> list[dict]:
    events = data.split(b"\n\n")
    assert events.pop() == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events if b"[DONE]" not in event]


def test_golden_stream():
    render = SseRenderer(writer()).render
    stream = render(["Hel"]) + render(["lo", '"w\n']) + render([STOP])
    assert stream == (
        HEAD + b'[{"index":0,"delta":{"role":"assistant","content":"Hel"},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}]}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{"content":"\\"w\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
        b"data: [DONE]\n\n"
    )


def test_golden_usage():
    render = SseRenderer(writer(include_usage=True)).render
    stream = render(["Hi", STOP])
    assert stream == (
        HEAD + b'[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
        b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
        + HEAD
        + b'[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,'
        b'"prompt_tokens_details":{"cached_tokens":1}}}\n\n'
        b"data: [DONE]\n\n"
    )


def test_joined_chunks_are_the_same_as_single_ones():
    parts = [f"w{number} " for number in range(20)]
    one, other = writer(include_usage=True), writer(include_usage=True)
    for w in (one, other):
        w.write(["first"])
    assert one.write_joined(parts) == b"".join(other.write(parts))
    assert one.write_joined([*parts, STOP]) == b"".join(other.write([*parts, STOP]))


def test_role_is_said_even_if_the_answer_is_empty():
    first, last = events_of(SseRenderer(writer()).render([STOP]))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"


def test_frame_is_the_writers_business_only():
    framed = writer(frame=Frame(b"<", b">")).write(["a", STOP])
    assert [chunk[:1] + chunk[-1:] for chunk in framed] == [b"<>", b"<>"]
    assert all(json.loads(chunk[1:-1])["model"] == "tiny" for chunk in framed)


def delta(*choices: object) -> JsonDelta:
    return JsonDelta(json.dumps(choices).encode())


def test_tool_call_delta_passes_and_the_role_is_ours():
    call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}
    chunks = writer().write(
        [delta({"index": 0, "delta": call}), delta({"index": 0, "delta": call})]
    )
    first, second = (json.loads(chunk[6:])["choices"][0]["delta"] for chunk in chunks)
    assert first == {"role": "assistant", **call}
    assert second == call


def test_provider_cannot_speak_as_somebody_else():
    forged = {
        "index": 0,
        "delta": {"role": "system", "content": "x"},
        "id": "chatcmpl-other",
        "model": "gpt-5",
        "usage": {"total_tokens": 10**9},
        "finish_reason": "stop",
    }
    (chunk,) = writer().write([delta(forged)])
    event = json.loads(chunk[6:])
    assert event["model"] == "tiny"
    assert "usage" not in event
    assert event["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "x"},
            "logprobs": None,
            "finish_reason": None,
        }
    ]


@pytest.mark.parametrize("whitespace", [b"\n\ndata: [DONE]\n\n", b"\r\n\r\n", b"\r"])
def test_provider_cannot_end_an_event(whitespace):
    """JSON allows line ends between tokens; passed on as they come they would forge events."""
    plain = b'[{"index":0,"delta":{"content":"a"}}]'
    if b"data" not in whitespace:
        spaced = plain.replace(b",", b"," + whitespace)
        assert writer().write([JsonDelta(spaced)]) == writer().write([JsonDelta(plain)])
    in_string = plain.replace(b'"a"', json.dumps(whitespace.decode()).encode())
    (chunk,) = writer().write([JsonDelta(in_string)])
    assert chunk.count(b"\n") == 2
    assert b"\r" not in chunk
    (chunk,) = writer().write([whitespace.decode()])
    assert chunk.count(b"\n") == 2
    assert b"\r" not in chunk


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"{}",
        b'"text"',
        b"[1]",
        b"[{}]",
        b'[{"index":0}]',
        b'[{"delta":{}}]',
        b'[{"index":"0","delta":{}}]',
        b'[{"index":0,"delta":"x"}]',
        b'[{"index":0,"delta":{"content":"\xff"}}]',
        b'[{"index":0,"delta":{"content":"\\ud800"}}]',
        b'[{"index":0,"delta":{"x":' + b"[" * 100_000,
        b'[{"index":0,"delta":{"x":' + b"[" * 100 + b"]" * 100 + b"}}]",
        b'[{"index":1,"delta":{}}]',
        b'[{"index":-1,"delta":{}}]',
        b'[{"index":0,"delta":{},"finish_reason":"because"}]',
    ],
)
def test_malformed_delta_is_the_engines_failure(data):
    with pytest.raises(EngineFailed):
        writer().write([JsonDelta(data)])


def test_other_choices_keep_their_finish_reason():
    w = writer(choices_max=2)
    (chunk,) = w.write([delta({"index": 1, "delta": {}, "finish_reason": "length"})])
    assert json.loads(chunk[6:])["choices"][0]["finish_reason"] == "length"


def test_failed_stream_ends_with_an_error_and_without_done():
    event = SseRenderer(writer()).render_error(StreamInterrupted("The provider was lost."))
    assert events_of(event)[0]["error"]["code"] == "stream_interrupted"
    assert b"[DONE]" not in event
