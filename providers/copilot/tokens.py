"""Keeps the short-lived token of Copilot's API fresh: before it expires, after a sleep, on demand.

Two clocks are read. The steady one stands still while the machine sleeps, the wall clock can be
set; a token is as old as the clock says by which it is older.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from aimo_node.errors import EngineFailed
from providers.copilot.refusal import CopilotError

LIFE_SECONDS_MAX: Final = 86_400.0
"""A longer one means that this machine's clock is wrong, not that the token is good."""

REFRESH_SECONDS_USUAL: Final = 900.0
"""Where GitHub says nothing sensible; its tokens live half an hour."""

REFRESH_SECONDS_MIN: Final = 5.0
MARGIN_SECONDS: Final = 60.0
MARGIN_SHARE: Final = 0.2
"""Of a short life, in place of a whole minute."""

JITTER_SHARE: Final = 0.05
"""Several nodes of one owner that started together should not ask together for ever."""

SLEEP_SECONDS: Final = 5.0
"""The clocks of a machine that is awake drift apart by less."""

LOOK_SECONDS: Final = 15.0
"""How often the clocks are looked at: so late after a sleep is the token refreshed at most."""

LOOK_SECONDS_MIN: Final = 0.01
"""Two clocks never agree to the last bit; less than this is not waited for."""

BACK_OFF_SECONDS: Final = 1.0
BACK_OFF_SECONDS_MAX: Final = 60.0

_chance: Final = random.SystemRandom()
_log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CopilotToken:
    """One token.

    Attributes:
        root: scheme, host and port of the API it is for.
        refresh_seconds: from its arrival until GitHub wants it replaced.
        expires_at: seconds since the epoch by GitHub's clock; 0 if unknown.
    """

    value: str = field(repr=False)
    root: str
    refresh_seconds: float
    expires_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """What both clocks say, in seconds."""

    wall: float
    steady: float


def read_clocks() -> Moment:
    """Now."""
    return Moment(time.time_ns() / 1e9, trio.current_time())


def read_token(answer: Mapping[str, Any], root: str) -> CopilotToken:
    """The token in GitHub's answer.

    Raises:
        CopilotError: there is none.
    """
    value = answer.get("token")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise CopilotError("GitHub's answer holds no token for Copilot")
    refresh = _number(answer.get("refresh_in")) or REFRESH_SECONDS_USUAL
    return CopilotToken(value, root, refresh, _number(answer.get("expires_at")))


class HeldToken:
    """A token and when it came.

    Attributes:
        due_seconds: its age from which it is replaced.
        life_seconds: its age from which it is no longer used.
    """

    def __init__(self, token: CopilotToken, now: Moment, jitter: float) -> None:
        self.token = token
        self._came = now
        life = token.expires_at - now.wall
        if not 0 < life <= LIFE_SECONDS_MAX:
            # One of the two clocks is wrong; what GitHub says in seconds from now still holds.
            life = token.refresh_seconds + MARGIN_SECONDS
        planned = min(token.refresh_seconds, life)
        early = min(MARGIN_SECONDS, planned * MARGIN_SHARE) + planned * JITTER_SHARE * jitter
        self.due_seconds = max(planned - early, REFRESH_SECONDS_MIN)
        self.life_seconds = max(life, REFRESH_SECONDS_MIN)

    def age(self, now: Moment) -> float:
        """Seconds, by the clock that says more."""
        return max(now.wall - self._came.wall, now.steady - self._came.steady)

    def is_due(self, now: Moment) -> bool:
        """Time to replace it."""
        return self.age(now) >= self.due_seconds

    def is_expired(self, now: Moment) -> bool:
        """Not worth sending."""
        return self.age(now) >= self.life_seconds

    def has_slept(self, now: Moment) -> bool:
        """The machine slept since it came, or its clock was set ahead."""
        ahead = (now.wall - self._came.wall) - (now.steady - self._came.steady)
        return ahead > SLEEP_SECONDS


class TokenKeeper:
    """Owns the token; `run` is the only one to fetch, so there is one fetch at a time.

    Args:
        fetch: gets a new one; raises `CopilotError`.
        clocks: reads both; tests let the machine sleep.
        jitter: from 0 to 1, each time anew.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[CopilotToken]],
        *,
        clocks: Callable[[], Moment] = read_clocks,
        jitter: Callable[[], float] = _chance.random,
    ) -> None:
        self._fetch = fetch
        self._clocks = clocks
        self._jitter = jitter
        self._held: HeldToken | None = None
        self._error: CopilotError | None = None
        self._failures = 0
        self._on_probation = False
        self._rest_until: float | None = None
        self._wanted = trio.Event()
        self._settled = trio.Event()

    async def run(self) -> None:
        """Fetch now, and again whenever the token is due or wanted, until cancelled."""
        while True:
            await self._until_needed()
            try:
                token = await self._fetch()
            except CopilotError as error:
                self._failed(error)
            else:
                self._got(token)
            # Whoever wanted one meanwhile has it now.
            self._wanted = trio.Event()
            settled, self._settled = self._settled, trio.Event()
            settled.set()

    async def token(self) -> CopilotToken:
        """One to send now.

        Raises:
            EngineFailed: there is none, and none to be had.
        """
        now, held = self._clocks(), self._held
        stale = held is None or held.is_expired(now) or (held.is_due(now) and held.has_slept(now))
        if stale:
            await self._attempt()
        return self._current()

    async def replacement(self, rejected: CopilotToken) -> CopilotToken:
        """Another one than `rejected`, which Copilot did not take.

        Raises:
            EngineFailed: none to be had.
        """
        if self._held is not None and self._held.token is rejected:
            self._held = None
        if self._held is None:
            await self._attempt()
        return self._current()

    def distrust(self, token: CopilotToken) -> None:
        """Copilot refuses even a new one: ask for no other before a pause."""
        self._on_probation = True
        if self._held is not None and self._held.token is token:
            self._held = None
        self._failed(CopilotError("Copilot refuses the token that GitHub has just given"))
        self._wanted.set()  # once the pause is over

    def trust(self) -> None:
        """Copilot took the token."""
        if self._on_probation:
            self._on_probation = False
            self._failures = 0

    @property
    def failure(self) -> CopilotError | None:
        """Why the last attempt came to nothing; None if it did not."""
        return self._error

    @property
    def usable(self) -> bool:
        """Whether there is a token that is worth sending."""
        return self._held is not None and not self._held.is_expired(self._clocks())

    async def first(self) -> CopilotToken | None:
        """The token there is, or what one attempt gets; None if that failed, see `failure`."""
        if not self.usable:
            await self._attempt()
        return self._held.token if self._held is not None else None

    def _current(self) -> CopilotToken:
        if self._held is not None and self.usable:
            return self._held.token
        reason = self._error or "the engine is not running"
        raise EngineFailed(f"there is no token for Copilot: {reason}")

    async def _attempt(self) -> None:
        """Wait for the end of one; while they rest after a failure, that one counts."""
        if self._rest_until is None or trio.current_time() >= self._rest_until:
            self._wanted.set()
            await self._settled.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def _until_needed(self) -> None:
        while self._rest_until is None and not self._wanted.is_set():
            held = self._held
            left = held.due_seconds - held.age(self._clocks()) if held is not None else 0.0
            if left <= 0:
                return
            with trio.move_on_after(max(LOOK_SECONDS_MIN, min(left, LOOK_SECONDS))):
                await self._wanted.wait()
        if self._rest_until is not None:
            await trio.sleep_until(self._rest_until)

    def _got(self, token: CopilotToken) -> None:
        self._held = HeldToken(token, self._clocks(), self._jitter())
        self._rest_until = None
        self._error = None
        if not self._on_probation:
            self._failures = 0

    def _failed(self, error: CopilotError) -> None:
        self._failures += 1
        self._error = error
        pause = BACK_OFF_SECONDS * 2.0 ** min(self._failures - 1, 10)
        pause = BACK_OFF_SECONDS_MAX if error.final else min(pause, BACK_OFF_SECONDS_MAX)
        pause *= 1 + JITTER_SHARE * self._jitter()
        self._rest_until = trio.current_time() + pause
        _log.warning("copilot.token_failed", reason=str(error), again_seconds=round(pause, 1))


def _number(value: object) -> float:
    """A positive number, else 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        return 0.0
    return float(value)
