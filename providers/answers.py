"""Small things every engine does with the text of an answer."""

from __future__ import annotations

from typing import Final

PIECE_CHARACTERS_MAX: Final = 8192
"""At most 32 KiB of UTF-8, so that any piece fits into one frame of a link (64 KiB)."""


def split_text(text: str) -> list[str]:
    """`text` in pieces of at most `PIECE_CHARACTERS_MAX`; always at least one."""
    if len(text) <= PIECE_CHARACTERS_MAX:
        return [text]
    starts = range(0, len(text), PIECE_CHARACTERS_MAX)
    return [text[start : start + PIECE_CHARACTERS_MAX] for start in starts]
