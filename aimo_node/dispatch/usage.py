"""Who used this provider: counts by hour, peer and model, until they are written down.

Pure: `now` is an argument, in seconds since the epoch. Nothing of a prompt or an answer is in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from aimo_node.dispatch.quota import OTHERS
from aimo_node.domain.ids import ModelName, PeerId

HOUR_SECONDS: Final = 3_600
UNWRITTEN_MAX: Final = 8_192
"""Rows that wait for the disk. More is a disk that takes nothing; then peers are counted together,
and what they used is still right in sum."""
OTHER_MODELS: Final = ModelName("others")


class UsageKey(NamedTuple):
    """What is counted together; `hour` counts from the epoch."""

    hour: int
    peer: PeerId
    model: ModelName


@dataclass(slots=True)
class UsageRow:
    """What one peer used of one model in one hour, or in all the time it is asked for.

    Attributes:
        first_used, last_used: when requests ended, in seconds since the epoch.
    """

    peer: PeerId
    model: ModelName
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_used: float = 0.0
    last_used: float = 0.0

    def add(self, more: UsageRow) -> None:
        """Count `more` in as well."""
        known = self.last_used > 0
        self.requests += more.requests
        self.prompt_tokens += more.prompt_tokens
        self.completion_tokens += more.completion_tokens
        self.first_used = min(self.first_used, more.first_used) if known else more.first_used
        self.last_used = max(self.last_used, more.last_used)


class UsageBook:
    """What was used and is not on the disk yet."""

    def __init__(self) -> None:
        self._rows: dict[UsageKey, UsageRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, hour: int, row: UsageRow) -> None:
        """Count a row in."""
        key = UsageKey(hour, row.peer, row.model)
        if key not in self._rows and len(self._rows) >= UNWRITTEN_MAX:
            key = UsageKey(hour, OTHERS, OTHER_MODELS)
        known = self._rows.setdefault(key, UsageRow(key.peer, key.model))
        known.add(row)

    def take(self) -> list[tuple[int, UsageRow]]:
        """Everything with its hour, to be written; forgotten here."""
        rows, self._rows = self._rows, {}
        return [(key.hour, row) for key, row in rows.items()]

    def put_back(self, rows: Iterable[tuple[int, UsageRow]]) -> None:
        """They could not be written."""
        for hour, row in rows:
            self.add(hour, row)
