"""The one error of this package, and how GitHub's own words get into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aimo_node.errors import AimoError
from providers.answers import NOT_JSON

WORDS_CHARACTERS_MAX: Final = 200


class CopilotError(AimoError):
    """GitHub refuses, cannot be reached, or answers nonsense.

    Args:
        message: one sentence for the owner, naming the fix where there is one.
        final: trying again does not help before the owner has done something.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def read_object(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object in `body`, None if it holds anything else."""
    try:
        answer = msgspec.json.decode(body)
    except NOT_JSON:
        return None
    return answer if isinstance(answer, dict) else None


def words_of(answer: Mapping[str, Any] | None, secret: str = "") -> str:
    """What GitHub says to people in an error, printable and on one line; maybe empty.

    Args:
        secret: what was sent; it is left out if GitHub quotes it.
    """
    text = _message(answer or {})
    # Before the text is cut, so that no part of the secret is left either.
    return printable(text.replace(secret, "***") if secret else text)


def _message(answer: Mapping[str, Any]) -> str:
    for key in ("error_details", "error"):
        inner = answer.get(key)
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            return str(inner["message"])
    texts = (answer.get(key) for key in ("message", "error_description"))
    return next((text for text in texts if isinstance(text, str)), "")


def printable(text: str) -> str:
    """`text` without what would drive a terminal, cut to a sentence's length."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.strip()[:WORDS_CHARACTERS_MAX]
