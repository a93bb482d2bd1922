"""What a stranger may ask of an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.dispatch.parameters import OwnerLimits, hold_to_limits, read_parameters
from aimo_node.domain.ids import Endpoint
from aimo_node.errors import InvalidMessageFormat, InvalidRequest, RequestError

MESSAGES = [{"role": "user", "content": "hi"}]


def read(limits: OwnerLimits | None = None, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode()
    kept = read_parameters(Endpoint.CHAT, body)[1]
    hold_to_limits(Endpoint.CHAT, kept, limits or OwnerLimits())
    return kept


def image(url: Any) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]


def test_what_is_not_on_the_list_never_reaches_an_engine() -> None:
    kept = read(
        guided_decoding_backend="x", cache_salt="theirs", prompt_logprobs=5, user="me", seed=7
    )
    assert kept == {"messages": MESSAGES, "seed": 7}


def test_numbers_are_pulled_into_their_range() -> None:
    kept = read(temperature=99, top_p=-1, n=1000, max_tokens=10**12, top_logprobs=50)
    assert kept["temperature"] == 2
    assert kept["top_p"] == 0
    assert kept["n"] == 8
    assert kept["max_tokens"] == 1_048_576
    assert kept["top_logprobs"] == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("max_tokens", 1.5),
        ("stop", [1]),
        ("stop", ["x"] * 17),
        ("tools", {}),
        ("tools", [1]),
        ("logit_bias", []),
        ("parallel_tool_calls", 1),
        ("tool_choice", 5),
        ("messages", "hi"),
    ],
)
def test_a_wrong_type_is_refused_with_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessageFormat):
        read_parameters(Endpoint.CHAT, body)


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.1/router",
        "https://example.com/cat.png",
        "file:///etc/passwd",
        "ftp://allowed.example/x",
        "http://allowed.example@10.0.0.1/x",
        "http://10.0.0.1\\@allowed.example/x",
        "//allowed.example/x",
        "",
        None,
        ["http://10.0.0.1/"],
    ],
)
def test_remote_media_is_refused_with_its_place(url: Any) -> None:
    limits = OwnerLimits(media_domains=frozenset({"allowed.example"}))
    with pytest.raises(InvalidRequest) as caught:
        read(limits, messages=image(url))
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_inline_media_and_listed_domains_are_let_through() -> None:
    limits = OwnerLimits(media_domains=frozenset({"allowed.example"}))
    for url in ("data:image/png;base64,AAAA", "https://Allowed.example:443/cat.png"):
        assert read(limits, messages=image(url))["messages"] == image(url)


def test_a_part_that_carries_remote_media_under_a_type_of_text_is_refused_too() -> None:
    part = {"type": "text", "text": "x", "image_url": {"url": "http://10.0.0.1/"}}
    with pytest.raises(InvalidRequest):
        read(messages=[{"role": "user", "content": [part]}])


def test_the_owner_limits_the_length_of_answers() -> None:
    limits = OwnerLimits(tokens_max=100)
    assert read(limits)["max_tokens"] == 100
    assert read(limits, max_tokens=5)["max_tokens"] == 5
    assert read(limits, max_tokens=500)["max_tokens"] == 100
    kept = read(limits, max_completion_tokens=500)
    assert kept["max_completion_tokens"] == 100
    assert "max_tokens" not in kept


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stop", "n", "tools", "temperature", "aimo", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "image_url", "url"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_any_json_is_read_or_refused_in_the_callers_terms(fields: dict[str, Any]) -> None:
    try:
        name, kept = read_parameters(Endpoint.CHAT, json.dumps(fields).encode())
    except RequestError:
        return
    assert name
    assert set(kept) <= set(fields)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400])
def test_number_beyond_all_ranges_is_pulled_into_them(number: str) -> None:
    body = b'{"model": "m", "messages": [{"content": "hi"}], "seed": %b}' % number.encode()
    _, kept = read_parameters(Endpoint.CHAT, body)
    assert abs(kept["seed"]) >= 2**63 - 1


@pytest.mark.parametrize(
    "content",
    [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}, 5, [["image_url"]], [None]],
)
def test_content_of_a_shape_nobody_looks_into_is_refused(content: object) -> None:
    """An engine that takes a lone part would fetch its URL from the owner's network."""
    with pytest.raises(InvalidRequest) as caught:
        read(messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages[0].content"
