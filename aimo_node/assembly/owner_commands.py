"""What ``aimo provider pause``, ``resume`` and ``who`` ask of a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aimo_node.assembly.control_socket import Command
from aimo_node.assembly.pause_switch import PauseSwitch
from aimo_node.assembly.usage_keeping import UsageKeeper
from aimo_node.dispatch.quota import DAY_SECONDS
from aimo_node.dispatch.usage import HOUR_SECONDS, UsageRow
from aimo_node.domain.ids import PeerId
from aimo_node.errors import ConfigError
from aimo_node.store.usage import KEPT_DAYS

ROWS_MAX: Final = 2_000
"""In one answer, whose line is at most 1 MiB; the totals are over all."""
SINCE_SECONDS: Final = DAY_SECONDS


class OwnerCommands:
    """Commands by name, for the control socket.

    Args:
        own: this node, whose own use is marked.
    """

    def __init__(self, own: PeerId, switch: PauseSwitch, keeper: UsageKeeper) -> None:
        self._own = own
        self._switch = switch
        self._keeper = keeper

    def by_name(self) -> Mapping[str, Command]:
        """What the control socket takes."""
        return {
            "provider.pause": self._pause,
            "provider.resume": self._resume,
            "provider.who": self._who,
        }

    async def _pause(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._switch.service.engines:  # an edge has some only once they are registered
            raise ConfigError("this node serves no model, so there is nothing to pause")
        await self._switch.pause(unload=request.get("unload") is True)
        return self._state()

    async def _resume(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._switch.resume()
        return self._state()

    async def _who(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        seconds = request.get("since_seconds", SINCE_SECONDS)
        if type(seconds) not in {int, float} or not 0 < seconds <= KEPT_DAYS * DAY_SECONDS:
            raise ConfigError(f"a provider remembers {KEPT_DAYS} days: ask for that or less")
        meter = self._switch.service.meter
        since = (meter.now - seconds) // HOUR_SECONDS * HOUR_SECONDS  # as it was counted
        rows = await self._keeper.since(since)
        quota = meter.quotas.quota
        return self._state() | {
            "since": time_text(since),
            "usage": [self._row(row) for row in rows[:ROWS_MAX]],
            "left_off": max(0, len(rows) - ROWS_MAX),
            "totals": _totals(rows),
            "quota": {
                "requests_per_day": quota.requests_per_day,
                "tokens_per_day": quota.tokens_per_day,
            },
        }

    def _state(self) -> dict[str, Any]:
        return {
            "paused": self._switch.service.paused,
            "paused_since": time_text(self._switch.since) if self._switch.since else None,
            "running": self._switch.service.running,
        }

    def _row(self, row: UsageRow) -> dict[str, Any]:
        return {
            "peer": row.peer,
            "own": row.peer == self._own,
            "model": row.model,
            "requests": row.requests,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "first_used": time_text(row.first_used),
            "last_used": time_text(row.last_used),
        }


def time_text(moment: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(int(moment), UTC).isoformat().replace("+00:00", "Z")


def _totals(rows: Sequence[UsageRow]) -> dict[str, int]:
    return {
        "peers": len({row.peer for row in rows}),
        "requests": sum(row.requests for row in rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
    }
