"""Embeddings and images: what counts as an answer, and what travels of it."""

import base64
import json
import struct

import pytest

from aimo_node.dispatch.sinks import ANSWER_BYTES_MAX
from aimo_node.domain.answer import Usage
from aimo_node.errors import EngineFailed, InvalidRequest
from providers.openai.data import DATA_BYTES_MAX, DataAnswer, inputs_of


def body(*entries, **more):
    return json.dumps({"object": "list", "data": list(entries), **more}).encode()


def vector(index, *numbers, **more):
    return {"object": "embedding", "index": index, "embedding": list(numbers), **more}


def read(answer, inputs=0):
    data = DataAnswer(answer, inputs)
    for _ in data.read():
        pass
    return json.loads(data.data())


def test_vectors_come_in_the_order_of_their_inputs():
    answer = body(vector(1, 0.5, -1), vector(0, 1e-7, 2))
    assert read(answer, 2) == [vector(0, 1e-7, 2), vector(1, 0.5, -1)]


def test_numbers_are_not_written_anew():
    """A float64 that is printed with more digits than it needs stays as it is."""
    answer = b'{"data":[{"index":0,"embedding":[0.10000000000000000555,1]}]}'
    data = DataAnswer(answer)
    list(data.read())
    assert b"[0.10000000000000000555,1]" in data.data()


def test_base64_passes():
    packed = base64.b64encode(struct.pack("<2f", 0.5, 1.0)).decode()
    entry = {"object": "embedding", "index": 0, "embedding": packed}
    assert read(body(entry)) == [entry]


def test_printed_answer_becomes_one_line():
    answer = json.dumps({"data": [vector(0, 0.5, 1)]}, indent=2).encode()
    data = DataAnswer(answer)
    list(data.read())
    assert b"\n" not in data.data()
    assert json.loads(data.data()) == [vector(0, 0.5, 1)]


def test_vendors_own_fields_do_not_travel():
    assert read(body(vector(0, 1, model="secret-upstream-name"))) == [vector(0, 1)]


def test_missing_index_is_the_place():
    entries = [{"embedding": [1]}, {"embedding": [2]}]
    assert read(body(*entries)) == [vector(0, 1), vector(1, 2)]


def test_images_pass():
    entries = [{"b64_json": "aGk=", "revised_prompt": "a kite", "seed": 7}, {"url": "data:,"}]
    found = read(body(*entries))
    assert found == [{"b64_json": "aGk=", "revised_prompt": "a kite"}, {"url": "data:,"}]


def test_usage_is_read():
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    assert DataAnswer(body(vector(0, 1), usage=usage)).usage == Usage(7)
    assert DataAnswer(body(vector(0, 1))).usage == Usage()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b"\xff",
        b'{"data":[{"embedding":[1,NaN]}]}',
        body(),
        body("no object"),
        body({}),
        body({"index": 0}),
        body(vector(0)),
        body(vector(0, "1")),
        body(vector(0, None)),
        body({"embedding": ""}),
        body({"embedding": {"a": 1}}),
        body(vector(-1, 1)),
        body(vector(1, 1)),
        body(vector(0, 1), vector(0, 1)),
        body({"b64_json": 5}),
        body(vector(0, 1), error={"message": "boom"}),
        body(*[vector(index % 2048, 1) for index in range(2049)]),
    ],
)
def test_anything_else_is_a_failure_of_the_engine(answer):
    with pytest.raises(EngineFailed):
        read(answer)


def test_fewer_vectors_than_inputs_are_a_failure():
    with pytest.raises(EngineFailed, match="1 of 2 inputs"):
        read(body(vector(0, 1)), 2)


def test_more_than_the_mesh_carries_is_refused_with_the_way_out():
    """Another provider could not send it either, so nobody is asked again."""
    long = {"embedding": "A" * (DATA_BYTES_MAX // 2)}
    with pytest.raises(InvalidRequest, match="fewer inputs") as caught:
        read(body(long, long))
    assert not caught.value.retryable


def test_bound_is_that_of_the_mesh():
    assert DATA_BYTES_MAX == ANSWER_BYTES_MAX


@pytest.mark.parametrize(
    ("given", "count"),
    [("text", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2), (None, 0)],
)
def test_inputs_are_counted(given, count):
    assert inputs_of({"input": given}) == count
