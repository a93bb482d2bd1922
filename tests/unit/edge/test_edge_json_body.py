"""A consumer's JSON: what is refused, and how the offending field is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Struct

from aimo_node.edge.json_body import JSON_DEPTH_MAX, check, decode_object, encode_object
from aimo_node.errors import InvalidMessageFormat, InvalidRequest


class Inner(Struct):
    size: int


class Outer(Struct):
    items: list[Inner]
    weights: dict[str, float] = {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        b"\xff\xfe{}",
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_in_utf8_is_refused(body):
    with pytest.raises(InvalidMessageFormat):
        decode_object(body)


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("levels", [JSON_DEPTH_MAX, 500, 100_000])
def test_depth_bomb_is_refused(opening, closed, levels):
    closing = (b"}" if opening[:1] == b"{" else b"]") if closed else b""
    bomb = b'{"x":' + opening * levels + b"1" + closing * levels + b"}"
    with pytest.raises(InvalidMessageFormat):
        decode_object(bomb)


def test_depth_at_the_limit_and_breadth_are_fine():
    deep: Any = 1
    for _ in range(JSON_DEPTH_MAX):
        deep = {"a": deep}
    decode_object(json.dumps(deep).encode())
    decode_object(json.dumps({"a": [{"b": []}] * 1000}).encode())


def test_of_a_name_given_twice_the_checked_value_is_what_is_passed_on():
    """A decoder downstream that takes the first would otherwise see what nobody checked."""
    assert encode_object(decode_object(b'{"a": 1, "a": 2}')) == b'{"a":2}'


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        ({}, "items", "Missing required parameter: 'items'."),
        ({"items": [{}]}, "items[0].size", "Missing required parameter: 'items[0].size'."),
        ({"items": [{"size": 1}, {"size": "x"}]}, "items[1].size", "expected `int`, got `str`"),
        ({"items": 5}, "items", "expected `array`, got `int`"),
        ({"items": [], "weights": {"a": "b"}}, "weights", "expected `float`, got `str`"),
    ],
)
def test_offending_field_is_named(value, param, words):
    with pytest.raises(InvalidRequest) as caught:
        check(value, Outer)
    assert caught.value.param == param
    assert words in caught.value.message


def test_prefix_says_where_the_object_stood():
    with pytest.raises(InvalidRequest) as caught:
        check({}, Outer, "body")
    assert caught.value.param == "body.items"
    with pytest.raises(InvalidRequest) as caught:
        check({"items": [{}]}, Outer, "body")
    assert caught.value.param == "body.items[0].size"
