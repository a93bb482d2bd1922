"""Keeps what is the owner's own out of the messages that consumers read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from aimo_node.errors import CodedError, EngineFailed

PIECE_CHARACTERS_MIN: Final = 4
"""A message may be cut in the middle of a key; a shorter piece of one tells nothing."""


class Discretion:
    """A context: errors leave it without the key and without the upstream's names of models.

    Args:
        secret: the owner's key; a message that quotes it, or part of it at its end, is withheld.
        names: what consumers call a model, by the upstream's name for it.
    """

    __slots__ = ("_names", "_secret")

    def __init__(self, secret: str, names: Mapping[str, str]) -> None:
        self._secret = secret
        self._names = names

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Replace an error that says too much; what led to it is not kept either."""
        if not isinstance(error, CodedError):
            return
        if self._quotes_secret(error.message):
            raise EngineFailed("the engine's upstream refuses the request") from None
        message = self._in_our_names(error.message)
        if message != error.message:
            raise type(error)(
                message, param=error.param, retry_after_seconds=error.retry_after_seconds
            ) from None

    def _quotes_secret(self, message: str) -> bool:
        secret = self._secret
        if not secret:
            return False
        pieces = range(PIECE_CHARACTERS_MIN, len(secret))
        return secret in message or any(message.endswith(secret[:length]) for length in pieces)

    def _in_our_names(self, message: str) -> str:
        for own, ours in self._names.items():
            if own != ours:
                message = ours.join(re.split(rf"(?<!\w){re.escape(own)}(?!\w)", message))
        return message
