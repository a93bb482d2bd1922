"""Small things every engine does with answers and refusals."""

from __future__ import annotations

from typing import Final

import msgspec

PIECE_CHARACTERS_MAX: Final = 8192
"""At most 32 KiB of UTF-8, so that any piece fits into one frame of a link (64 KiB)."""

MESSAGE_CHARACTERS_MAX: Final = 300
"""Of an upstream's own words in an error of ours."""

NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON, not UTF-8 or nested too deep."""


def split_text(text: str) -> list[str]:
    """`text` in pieces of at most `PIECE_CHARACTERS_MAX`; none if it is empty."""
    starts = range(0, len(text), PIECE_CHARACTERS_MAX)
    return [text[start : start + PIECE_CHARACTERS_MAX] for start in starts]


def one_line(message: str) -> str:
    """An upstream's words as one of our sentences may quote them."""
    printable = "".join(letter if letter.isprintable() else " " for letter in message)
    return printable[:MESSAGE_CHARACTERS_MAX]
