"""Identifiers that must not be mixed up, and the closed sets the wire numbers."""

from __future__ import annotations

import enum
from typing import Final, NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its usual text form, such as ``12D3KooW…``."""

RequestId = NewType("RequestId", bytes)
"""Sixteen random bytes (UUIDv4) that name one request on the link that carries it."""

ModelName = NewType("ModelName", str)
"""The name a model is served under, such as ``tiny`` or ``llama3:8b``."""

REQUEST_ID_BYTES: Final = 16

_BASE58 = frozenset("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
_PEER_ID_LENGTHS: Final = range(46, 64)


def is_peer_id(text: str) -> bool:
    """Whether `text` has the form of a peer id; decides if ``peer:model`` pins a provider."""
    return (
        len(text) in _PEER_ID_LENGTHS
        and text.startswith(("12D3KooW", "Qm", "16Uiu2"))
        and _BASE58.issuperset(text)
    )


def split_pinned(model: str) -> tuple[PeerId | None, ModelName]:
    """Split ``peer:model`` only if the prefix is a peer id: ``llama3:8b`` is a plain name."""
    prefix, separator, rest = model.partition(":")
    if separator and rest and is_peer_id(prefix):
        return PeerId(prefix), ModelName(rest)
    return None, ModelName(model)


class Role(enum.IntFlag):
    """What a node does; roles combine."""

    NONE = 0
    RELAY = 1
    PROVIDER = 2
    EDGE = 4

    @property
    def names(self) -> list[str]:
        """Lower-case names of the roles that are set."""
        return [str(role.name).lower() for role in Role if role in self]


class Endpoint(enum.IntEnum):
    """What may be asked of an engine. Never a path: a stranger cannot reach anything else."""

    CHAT = 1
    COMPLETIONS = 2
    EMBEDDINGS = 3
    IMAGES = 4


class ContentType(enum.IntEnum):
    """How a payload is to be read."""

    TEXT = 0
    JSON = 1


class FinishReason(enum.IntEnum):
    """Why an answer ended, in OpenAI's vocabulary."""

    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4

    @property
    def text(self) -> str:
        """The name in OpenAI's JSON, such as ``tool_calls``."""
        return _FINISH_TEXT[self]


_FINISH_TEXT = {reason: reason.name.lower() for reason in FinishReason}
FINISH_REASONS: dict[str, FinishReason] = {text: reason for reason, text in _FINISH_TEXT.items()}
"""Finish reasons by their OpenAI name."""
