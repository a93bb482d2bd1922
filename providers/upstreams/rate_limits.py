"""What an upstream's headers say about its rate limits: how much is used up, and how long it is
closed. Decides only: headers and the time come in, numbers go out.

Known are OpenAI's headers (Groq, Azure and many others have the same), Anthropic's, the IETF's
``RateLimit`` in its older and newer forms, and ``Retry-After``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

CLOSED_SECONDS_MAX: Final = 3600.0
"""A daily limit may stay closed for longer, but asking once an hour is cheap; clocks are wrong."""

TOO_MANY_REQUESTS: Final = 429

_FAMILIES: Final = (
    "x-ratelimit-{}-requests",
    "x-ratelimit-{}-tokens",
    "x-ratelimit-{}",
    "ratelimit-{}",
    "anthropic-ratelimit-requests-{}",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
    "anthropic-ratelimit-output-tokens-{}",
)
_NAMES: Final = tuple(
    (family.format("limit"), family.format("remaining"), family.format("reset"))
    for family in _FAMILIES
)
_NUMBER: Final = re.compile(r"\s*(\d{1,15})(?![\d.])")
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_DURATIONS: Final = re.compile(rf"(?:{_DURATION.pattern})+")
_SECONDS: Final = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_EPOCH_SECONDS: Final = 1_000_000_000
"""A larger number is a date: in seconds, or in milliseconds if it is a thousand times larger."""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit as an answer describes it.

    Attributes:
        used: share 0–1.
        reset_seconds: until nothing of it is used; 0 if unknown.
    """

    used: float
    exhausted: bool
    reset_seconds: float


class RateLimits:
    """What is known of one model's limits. All times of `now` are of one clock that only grows.

    Attributes:
        closed_until: the upstream wants no request before.
    """

    def __init__(self) -> None:
        self.closed_until = 0.0
        self._used: list[tuple[float, float]] = []
        """(until when it counts, share)"""

    def note(self, status: int, headers: Mapping[str, str], now: float, epoch: float) -> None:
        """Take in an answer's headers.

        Args:
            headers: names in lower case.
            now: seconds.
            epoch: seconds since 1970, for headers that give a date.
        """
        windows = read_windows(headers, epoch)
        if windows:
            self._used = [(now + window.reset_seconds, window.used) for window in windows]
        closed = [window.reset_seconds for window in windows if window.exhausted]
        if status == TOO_MANY_REQUESTS:
            closed.append(retry_after_seconds(headers, epoch) or 0.0)
        seconds = max(closed, default=0.0)
        if seconds:
            self.closed_until = max(self.closed_until, now + seconds)

    def share(self, now: float) -> float:
        """How much of the tightest limit is used, 0–1."""
        if self.closed_until > now:
            return 1.0
        return max((share for until, share in self._used if until > now), default=0.0)

    def closed_seconds(self, now: float) -> float:
        """How long no request should be sent; 0 if one may be."""
        return max(0.0, self.closed_until - now)


def read_windows(headers: Mapping[str, str], epoch: float) -> list[Window]:
    """The limits that an answer's headers describe; what nobody understands is passed over.

    Args:
        headers: names in lower case.
        epoch: seconds since 1970.
    """
    if not any("ratelimit" in name for name in headers):
        return []
    windows = [
        _window(headers.get(limit, ""), headers[remaining], headers.get(reset, ""), epoch)
        for limit, remaining, reset in _NAMES
        if remaining in headers
    ]
    windows += _structured(headers.get("ratelimit", ""), headers.get("ratelimit-policy", ""), epoch)
    return [window for window in windows if window is not None]


def retry_after_seconds(headers: Mapping[str, str], epoch: float | None = None) -> float | None:
    """How long to wait by ``Retry-After``, at most an hour; None if it does not say.

    Args:
        epoch: seconds since 1970; without it a date is not read.
    """
    if (text := headers.get("retry-after-ms", "").strip()) and _SECONDS.fullmatch(text):
        return min(float(text) / 1000, CLOSED_SECONDS_MAX)
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), CLOSED_SECONDS_MAX)
    if not text or epoch is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return _until(date, epoch)


def _window(limit: str, remaining: str, reset: str, epoch: float) -> Window | None:
    left = _NUMBER.match(remaining)
    if left is None:
        return None
    most = _NUMBER.match(limit)
    number, bound = int(left[1]), int(most[1]) if most else 0
    used = 1.0 - number / bound if bound else 0.0
    exhausted = number == 0
    share = 1.0 if exhausted else min(1.0, max(0.0, used))
    return Window(share, exhausted, _reset_seconds(reset.strip(), epoch))


def _reset_seconds(text: str, epoch: float) -> float:
    if _SECONDS.fullmatch(text):
        seconds = float(text)
        if seconds >= _EPOCH_SECONDS * 1000:
            seconds /= 1000
        if seconds >= _EPOCH_SECONDS:
            seconds -= epoch
    elif _DURATIONS.fullmatch(text):
        seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(text))
    else:
        try:
            return _until(datetime.fromisoformat(text), epoch)
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), CLOSED_SECONDS_MAX)


def _until(date: datetime, epoch: float) -> float:
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max(0.0, aware.timestamp() - epoch), CLOSED_SECONDS_MAX)


def _structured(limits: str, policies: str, epoch: float) -> list[Window | None]:
    """``"default";r=50;t=30``, or in older drafts ``limit=100, remaining=50, reset=30``."""
    if "remaining=" in limits:
        found = _parameters(limits.replace(",", ";"))
        return [_window(found.get("limit", ""), found["remaining"], found.get("reset", ""), epoch)]
    quotas = {
        policy.partition(";")[0].strip(): _parameters(policy).get("q", "")
        for policy in policies.split(",")
    }
    windows: list[Window | None] = []
    for item in limits.split(","):
        found = _parameters(item)
        if "r" in found:
            quota = quotas.get(item.partition(";")[0].strip(), "")
            windows.append(_window(quota, found["r"], found.get("t", ""), epoch))
    return windows


def _parameters(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, sign, value in pairs if sign}
