"""Reads what GitHub says about the owner's plan and what is left of its quotas; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from providers.copilot.refusal import printable

QUOTAS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota of the month.

    Attributes:
        entitlement: requests in all; 0 if unlimited or unknown.
        remaining: may be negative, when more was used than the plan holds.
        percent_remaining: 0 to 100.
        overage: requests beyond the plan, which GitHub bills.
    """

    name: str
    unlimited: bool
    entitlement: float
    remaining: float
    percent_remaining: float
    overage: float = 0.0


@dataclass(frozen=True, slots=True)
class CopilotUsage:
    """The owner's Copilot. Texts are empty where GitHub says nothing.

    Attributes:
        reset_date: when the quotas begin anew, as GitHub writes it.
    """

    login: str
    plan: str
    reset_date: str
    quotas: tuple[Quota, ...]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self) | {"quotas": [asdict(quota) for quota in self.quotas]}


def read_usage(answer: Mapping[str, Any]) -> CopilotUsage:
    """What `GitHub.user` has got; plans that are paid for and those that are not differ."""
    snapshots = answer.get("quota_snapshots")
    if isinstance(snapshots, dict) and snapshots:
        quotas = [_quota(name, found) for name, found in snapshots.items()]
    else:
        quotas = _free_quotas(answer)
    reset = _text(answer, "quota_reset_date") or _text(answer, "limited_user_reset_date")
    return CopilotUsage(
        _text(answer, "login"),
        _text(answer, "copilot_plan"),
        reset,
        tuple(quota for quota in quotas if quota is not None)[:QUOTAS_MAX],
    )


def _quota(name: object, found: object) -> Quota | None:
    if not isinstance(found, dict):
        return None
    entitlement, remaining = _number(found.get("entitlement")), _number(found.get("remaining"))
    percent = found.get("percent_remaining")
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        percent = 100 * remaining / entitlement if entitlement else 0.0
    return Quota(
        printable(str(name)),
        found.get("unlimited") is True,
        entitlement,
        remaining,
        _percent(float(percent)),
        _number(found.get("overage_count")),
    )


def _free_quotas(answer: Mapping[str, Any]) -> list[Quota | None]:
    left, monthly = answer.get("limited_user_quotas"), answer.get("monthly_quotas")
    if not isinstance(left, dict) or not isinstance(monthly, dict):
        return []
    return [
        _quota(name, {"entitlement": monthly.get(name), "remaining": remaining})
        for name, remaining in left.items()
    ]


def _percent(value: float) -> float:
    return round(min(max(value, 0.0), 100.0), 1) if value == value else 0.0  # noqa: PLR0124 (NaN)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        return 0.0
    return float(value)


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return printable(value) if isinstance(value, str) else ""
