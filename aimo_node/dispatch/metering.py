"""One request's account: held to its peer's quota when it comes, counted when it ends.

What counts: a request that reached an engine, unless it ended with an error before anything was
produced. Its tokens are those that the engine reports at the end. A request that was cancelled or
broke off counts with one token for each piece of the answer that was produced, and with the tokens
of its prompt where the engine can count them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from aimo_node.dispatch.quota import DayQuotas, Quota, Spent
from aimo_node.dispatch.usage import HOUR_SECONDS, UsageBook, UsageRow
from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import ModelName, PeerId

TOKENS_MAX: Final = 1 << 40
"""Of one request, whatever its engine says: the ledger takes 63 bits."""


class Meter:
    """Counts what peers use of one provider.

    Attributes:
        quotas: what each has used today.
        book: what is to be written down.
        news: set when there is something in the book.
    """

    def __init__(self, own: PeerId, quota: Quota, clock: Callable[[], float]) -> None:
        """
        Args:
            own: this node, which has no quota.
            clock: seconds since the epoch.
        """
        self.quotas = DayQuotas(quota, own)
        self.book = UsageBook()
        self.news = trio.Event()
        self._clock = clock

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def open(self, peer: PeerId) -> Bill:
        """A request comes in.

        Raises:
            RateLimitExceeded: the peer has used up its day.
        """
        return Bill(self, peer, self.quotas.take(peer, self._clock()))

    def record(self, peer: PeerId, model: ModelName, requests: int, usage: Usage) -> None:
        """Something was used; the request itself is in the quota already."""
        now = self._clock()
        prompt, completion = _bounded(usage.prompt_tokens), _bounded(usage.completion_tokens)
        # with the name of its account: fresh identities are not to fill the disk either
        name = self.quotas.spend(peer, prompt + completion, now)
        row = UsageRow(name, model, requests, prompt, completion, now, now)
        self.book.add(int(now // HOUR_SECONDS), row)
        self.news.set()


class Bill:
    """What one request is going to cost its peer."""

    __slots__ = ("_account", "_counts", "_meter", "_model", "_peer")

    def __init__(self, meter: Meter, peer: PeerId, account: Spent) -> None:
        """`account`: of the day on which it came in, which may be over when it ends."""
        self._meter = meter
        self._peer = peer
        self._account = account
        self._model = ModelName("")
        self._counts = False

    def settle(self, model: ModelName, usage: Usage) -> None:
        """It reached an engine and used this."""
        self._model, self._counts = model, True
        self._meter.record(self._peer, model, 1, usage)

    def add_prompt(self, tokens: int) -> None:
        """The length of its prompt became known after it was settled."""
        self._meter.record(self._peer, self._model, 0, Usage(prompt_tokens=tokens))

    def close(self) -> None:
        """The request has ended; what was not settled does not count."""
        if not self._counts:
            self._meter.quotas.give_back(self._peer, self._account)


def _bounded(tokens: int) -> int:
    return min(max(0, tokens), TOKENS_MAX)
