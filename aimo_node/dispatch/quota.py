"""How much of a provider each peer may use in a day, and who has used that up.

Pure: `now` is an argument, in seconds since the epoch. A day is a day of UTC, so that everybody can
tell when it is over, and what is remembered of a peer is two numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aimo_node.domain.ids import PeerId
from aimo_node.errors import RateLimitExceeded

DAY_SECONDS: Final = 86_400
PEERS_MAX: Final = 4_096
"""Peers with an account of their own in one day: above what one provider is linked to. Those that
come after share one account, so that fresh identities neither fill the memory nor get past it."""
OTHERS: Final = PeerId("others")
"""Whose account that is."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What one peer may use in a day; 0 sets no limit."""

    requests_per_day: int = 0
    tokens_per_day: int = 0


@dataclass(slots=True)
class Spent:
    """What one peer has used today; tokens of prompts and answers together."""

    requests: int = 0
    tokens: int = 0


class DayQuotas:
    """The accounts of one day. The node's own edge has none: it is the owner's.

    Attributes:
        refused_total: requests that were over a quota.
    """

    def __init__(self, quota: Quota, own: PeerId) -> None:
        self.quota = quota
        self.refused_total = 0
        self._own = own
        self._day = 0
        self._spent: dict[PeerId, Spent] = {}

    def restore(self, spent: Mapping[PeerId, Spent], now: float) -> None:
        """What was used earlier today, before the node was started again."""
        self._turn(now)
        for peer, before in spent.items():
            account = self._account(peer)
            account.requests += before.requests
            account.tokens += before.tokens

    def take(self, peer: PeerId, now: float) -> Spent:
        """Count one request that begins, on the account that is returned.

        Raises:
            RateLimitExceeded: the peer has used up its day; it says when the next one begins.
        """
        if peer == self._own:
            return Spent(requests=1)
        self._turn(now)
        account = self._account(peer)
        for used, most, what in (
            (account.requests, self.quota.requests_per_day, "requests"),
            (account.tokens, self.quota.tokens_per_day, "tokens"),
        ):
            if most and used >= most:
                self.refused_total += 1
                raise RateLimitExceeded(
                    f"this provider gives each peer {most:,} {what} a day, and yours are used up:"
                    " the next day begins at 0:00 UTC",
                    retry_after_seconds=(self._day + 1) * DAY_SECONDS - now,
                )
        account.requests += 1
        return account

    def give_back(self, peer: PeerId, account: Spent) -> None:
        """A request that was counted on `account` came to nothing; who used nothing needs none.

        The account may be one of a day that is over.
        """
        account.requests = max(0, account.requests - 1)
        if account == Spent() and self._spent.get(peer) is account:
            del self._spent[peer]

    def spend(self, peer: PeerId, tokens: int, now: float) -> PeerId:
        """Tokens were used; an answer that runs over is finished all the same.

        Returns:
            Under whose name: the peer's, or that of all who came too late for one of their own.
        """
        if peer == self._own:
            return peer
        self._turn(now)
        self._account(peer).tokens += tokens
        return peer if peer in self._spent else OTHERS

    def _turn(self, now: float) -> None:
        """Begin a new day. A clock that is set back across midnight does not: who has used up the
        day would get another one. One that was days ahead does: else it would never end."""
        day = int(now // DAY_SECONDS)
        if day not in {self._day, self._day - 1}:
            self._day = day
            self._spent.clear()

    def _account(self, peer: PeerId) -> Spent:
        account = self._spent.get(peer)
        if account is None:
            name = peer if len(self._spent) < PEERS_MAX else OTHERS
            account = self._spent.setdefault(name, Spent())
        return account
