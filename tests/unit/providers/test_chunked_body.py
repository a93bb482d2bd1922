"""A piece that looks like one whole chunk is taken for one only where a chunk can begin."""

import pytest

from providers.http.body import ChunkedBody

CHUNK = b"3\r\nabc\r\n"


@pytest.mark.parametrize("size", [b"3", b"03", b"0003", b"3;name=value", b"3 "])
def test_whole_chunk_in_one_piece_is_its_content(size):
    assert ChunkedBody().feed(size + b"\r\nabc\r\n") == b"abc"


def test_content_may_hold_line_breaks():
    assert ChunkedBody().feed(b"4\r\n\r\n\r\n\r\n") == b"\r\n\r\n"


def test_several_chunks_in_one_piece_are_joined():
    assert ChunkedBody().feed(CHUNK + CHUNK) == b"abcabc"


@pytest.mark.parametrize(
    ("before", "content"),
    [(b"8\r\n", CHUNK), (b"0\r\n", b""), (b"0\r\n\r\n", b"")],
    ids=["inside-a-chunk", "in-the-trailer", "after-the-end"],
)
def test_what_looks_like_a_chunk_elsewhere_is_none(before, content):
    body = ChunkedBody()
    body.feed(before)
    assert body.feed(CHUNK) == content
