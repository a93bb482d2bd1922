"""GitHub's own words in our sentences: on one line, short, and never the secret that was sent."""

from __future__ import annotations

import pytest

from providers.copilot.refusal import WORDS_CHARACTERS_MAX, read_object, words_of

SECRET = "tid=" + "0123456789abcdef" * 40


@pytest.mark.parametrize("before", [0, 1, WORDS_CHARACTERS_MAX - 8, WORDS_CHARACTERS_MAX])
def test_a_secret_that_is_quoted_leaves_no_part_behind(before: int) -> None:
    """Copilot's tokens are longer than what is shown, so a cut one must not slip through."""
    words = words_of({"message": "x" * before + SECRET}, SECRET)
    assert "tid=" not in words
    assert "0123" not in words
    assert len(words) <= WORDS_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error_details": {"message": "one"}, "message": "two"}, "one"),
        ({"error": {"message": "one"}}, "one"),
        ({"error": "code", "error_description": "why"}, "why"),
        ({"message": "two\nlines \x1b[2J"}, "two lines  [2J"),
        ({"message": 7}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_what_github_says_is_found_and_made_harmless(
    answer: dict[str, object] | None, words: str
) -> None:
    assert words_of(answer) == words


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_none(body: bytes) -> None:
    assert read_object(body) is None
