"""GitHub's device flow (RFC 8628) as a state machine: answers in, the next action out, no clock."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from providers.copilot.refusal import CopilotError, printable, words_of
from providers.copilot.sites import Site, same_host

DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
PUBLIC_CLIENT_ID: Final = "Iv1.b507a08c87ecfe98"
"""The public id of the editor's Copilot plug-in; Copilot's token is given to that client only."""

SCOPE: Final = "read:user"

INTERVAL_SECONDS_USUAL: Final = 5.0
"""RFC 8628, 3.2: when the server names none."""

INTERVAL_SECONDS_MIN: Final = 1.0
SLOW_DOWN_SECONDS: Final = 5.0
"""RFC 8628, 3.5: what ``slow_down`` adds, for all polls that follow."""

EXTRA_SECONDS: Final = 0.2
"""On top of each wait: a poll that GitHub sees a moment too early is told to slow down."""

BACK_OFF_SECONDS_MAX: Final = 60.0
EXPIRES_SECONDS_MAX: Final = 3600.0
"""Nobody waits longer than that; GitHub's codes live a quarter of an hour."""

TOKEN_CHARACTERS_MAX: Final = 1024
CODE_CHARACTERS_MAX: Final = 64


class Reason(enum.StrEnum):
    """Why there is no login; mostly GitHub's own error codes."""

    EXPIRED = "expired_token"
    DENIED = "access_denied"
    WRONG_DEVICE_CODE = "incorrect_device_code"
    WRONG_GRANT = "unsupported_grant_type"
    WRONG_CLIENT = "incorrect_client_credentials"
    DISABLED = "device_flow_disabled"
    UNKNOWN = "unknown_error"


_AGAIN: Final = "run `aimo auth copilot` again"
_WRONG_CLIENT: Final = "GitHub does not know this client id: check --client-id and the domain"
_SENTENCES: Final[Mapping[str, tuple[Reason, str]]] = {
    "expired_token": (Reason.EXPIRED, f"the code has expired: {_AGAIN}"),
    "token_expired": (Reason.EXPIRED, f"the code has expired: {_AGAIN}"),
    "access_denied": (Reason.DENIED, "the login was cancelled in the browser"),
    "incorrect_device_code": (
        Reason.WRONG_DEVICE_CODE,
        f"GitHub does not know the code it gave: {_AGAIN}",
    ),
    "unsupported_grant_type": (
        Reason.WRONG_GRANT,
        "this GitHub offers no login by device code: its version is too old",
    ),
    "incorrect_client_credentials": (Reason.WRONG_CLIENT, _WRONG_CLIENT),
    "unauthorized_client": (Reason.WRONG_CLIENT, _WRONG_CLIENT),
    "device_flow_disabled": (
        Reason.DISABLED,
        "the device flow is switched off for this client id: give another with --client-id",
    ),
}


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What GitHub gave; `user_code` is for the person, `device_code` for us alone."""

    device_code: str = field(repr=False)
    user_code: str
    verification_url: str
    expires_seconds: float
    interval_seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so long, then call `DeviceFlow.waited`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask whether the person is through, then call `answered` or `unanswered`."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The end: GitHub's token."""

    github_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The end, without a login; `message` names what to do."""

    reason: Reason
    message: str


Action: TypeAlias = Wait | Poll | LoggedIn | GaveUp


def read_device_code(status: int, answer: Mapping[str, Any] | None, site: Site) -> DeviceCode:
    """The first answer of the flow.

    Raises:
        CopilotError: GitHub refuses to begin, or what it says makes no sense.
    """
    found = answer or {}
    if isinstance(found.get("error"), str):
        raise CopilotError(_refusal(found).message, final=True)
    if status == 404:
        raise CopilotError(_WRONG_CLIENT, final=True)
    if status == 429:
        raise CopilotError("GitHub wants a pause before the next login: wait some minutes")
    if status != 200:
        raise CopilotError(f"GitHub answers the login with HTTP status {status}: try again later")
    code, shown = found.get("device_code"), found.get("user_code")
    url = found.get("verification_uri")
    if not (_is_word(code, TOKEN_CHARACTERS_MAX) and _is_word(shown, CODE_CHARACTERS_MAX)):
        raise CopilotError("GitHub's answer to the login holds no code", final=True)
    if not isinstance(url, str) or not url.isprintable() or not same_host(url, site.web):
        # Whoever could send people elsewhere could collect their logins.
        raise CopilotError("GitHub's answer to the login leads to another site", final=True)
    expires = _seconds(found.get("expires_in"), 900.0)
    interval = _seconds(found.get("interval"), INTERVAL_SECONDS_USUAL)
    return DeviceCode(
        str(code),
        str(shown),
        url,
        expires_seconds=min(expires, EXPIRES_SECONDS_MAX),
        interval_seconds=max(interval, INTERVAL_SECONDS_MIN),
    )


class DeviceFlow:
    """One login, from the code on. Every `now` is in seconds of one clock that never goes back.

    Attributes:
        interval_seconds: between two polls; only ever grows.
    """

    def __init__(self, code: DeviceCode, now: float) -> None:
        self.code = code
        self.interval_seconds = code.interval_seconds
        self._expires_at = now + code.expires_seconds
        self._silences = 0

    def begin(self, now: float) -> Action:
        """The code has been shown."""
        return self._wait(self.interval_seconds, now)

    def waited(self, now: float) -> Action:
        """The wait is over."""
        return self._expired() if now >= self._expires_at else Poll()

    def answered(self, status: int, answer: Mapping[str, Any] | None, now: float) -> Action:
        """GitHub has answered a poll."""
        found = answer or {}
        token, error = found.get("access_token"), found.get("error")
        if status == 200 and _is_word(token, TOKEN_CHARACTERS_MAX):
            return LoggedIn(str(token))
        if error == "authorization_pending":
            self._silences = 0
            return self._wait(self.interval_seconds, now)
        if error == "slow_down":
            asked = _seconds(found.get("interval"), 0.0)
            self.interval_seconds = max(self.interval_seconds + SLOW_DOWN_SECONDS, asked)
            return self._wait(self.interval_seconds, now)
        if isinstance(error, str):
            return _refusal(found)
        # A page of a proxy, a server that is down: not GitHub's word, so the code is still good.
        return self.unanswered(now)

    def unanswered(self, now: float) -> Action:
        """GitHub could not be asked: RFC 8628, 3.5 wants each wait to be twice as long."""
        self._silences += 1
        longer = self.interval_seconds * 2.0 ** min(self._silences, 10)
        return self._wait(max(self.interval_seconds, min(longer, BACK_OFF_SECONDS_MAX)), now)

    def seconds_left(self, now: float) -> float:
        """How long the code can still be entered."""
        return max(0.0, self._expires_at - now)

    def _wait(self, seconds: float, now: float) -> Action:
        if now >= self._expires_at:
            return self._expired()
        return Wait(min(seconds + EXTRA_SECONDS, self._expires_at - now))

    def _expired(self) -> GaveUp:
        return GaveUp(*_SENTENCES["expired_token"])


def _refusal(answer: Mapping[str, Any]) -> GaveUp:
    code = str(answer.get("error"))
    if code in _SENTENCES:
        return GaveUp(*_SENTENCES[code])
    said = words_of(answer) or "no reason given"
    return GaveUp(Reason.UNKNOWN, f"GitHub refuses the login ({printable(code)}): {said}")


def _is_word(value: object, characters_max: int) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= characters_max
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def _seconds(value: object, usual: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return usual
    return float(value)
