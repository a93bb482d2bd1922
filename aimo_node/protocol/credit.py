"""Credit: how much of one request may be on the way.

The receiver owns a `ReceiveWindow`, the sender a `SendCredit`; both book what a frame costs
(`cost_of`). Rule for both, so that the receiver can check the sender: a frame that costs n may go
if n is left, or, when n is larger than that, if at least `CREDIT_LONE_BYTES` are left.
"""

from __future__ import annotations

from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits


def cost_of(payload_bytes: int) -> int:
    """What a StreamChunk or Body with that much payload costs."""
    return payload_bytes + limits.CREDIT_FRAME_BYTES


class SendCredit:
    """The sender's account of one request."""

    __slots__ = ("left",)

    def __init__(self, initial: int) -> None:
        self.left = initial

    def allows(self, cost: int) -> bool:
        """Whether a frame that costs this much may go now."""
        return cost <= self.left or self.left >= limits.CREDIT_LONE_BYTES

    def spend(self, cost: int) -> None:
        """Book a frame that goes."""
        self.left -= cost

    def add(self, size: int) -> None:
        """Book a Credit frame.

        Raises:
            RemoteProtocolError: more than the largest window.
        """
        self.left += size
        if self.left > limits.CREDIT_WINDOW_BYTES_MAX:
            raise RemoteProtocolError("more credit than a window holds", CloseCode.CreditExceeded)


class WindowBudget:
    """All receive windows of one link; keeps their sum under `CREDIT_LINK_BYTES_MAX`."""

    __slots__ = ("left",)

    def __init__(self, total: int = limits.CREDIT_LINK_BYTES_MAX) -> None:
        self.left = total

    def take(self, size: int) -> bool:
        """Reserve `size` bytes for a new window; False if that would be too much."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def take_growth(self, size: int) -> bool:
        """Reserve `size` bytes for a window that grows; False if new ones need the room."""
        return self.left - size >= limits.CREDIT_GROWTH_RESERVE_BYTES and self.take(size)

    def give_back(self, size: int) -> None:
        """Return what a window held."""
        self.left += size


class ReceiveWindow:
    """The receiver's account of one request.

    The window starts small and doubles, within the link's budget, when the sender has used it up
    although the consumer keeps up: then the window is what slows the stream down. Over a distance
    that does not show, since what was granted and is still on its way looks unused; so a window
    doubles as well for a stream that has taken a few of it.
    """

    __slots__ = ("_budget", "_left", "_since_growth", "_unacknowledged", "size")

    def __init__(self, budget: WindowBudget, size: int = limits.CREDIT_INITIAL_BYTES) -> None:
        """`size` bytes must have been taken from `budget` before."""
        self._budget = budget
        self.size = size
        self._left = size
        self._unacknowledged = 0
        self._since_growth = 0

    def receive(self, cost: int) -> None:
        """Book an arriving frame.

        Raises:
            RemoteProtocolError: the sender had no credit for it.
        """
        if cost > self._left and self._left < limits.CREDIT_LONE_BYTES:
            message = f"a frame that costs {cost} with {self._left} bytes of credit left"
            raise RemoteProtocolError(message, CloseCode.CreditExceeded)
        self._left -= cost

    def consume(self, cost: int) -> int:
        """Book frames the consumer has taken; returns the bytes to grant now, 0 for none yet."""
        self._unacknowledged += cost
        if self._unacknowledged < self.size // 2:
            return 0
        grant = self._unacknowledged
        self._unacknowledged = 0
        self._since_growth += grant
        is_long = self._since_growth >= limits.CREDIT_GROWTH_WINDOWS * self.size
        if is_long or self._left <= self.size // 4:
            grant += self._grow()
        self._left += grant
        return grant

    def _grow(self) -> int:
        self._since_growth = 0
        growth = min(self.size, limits.CREDIT_WINDOW_BYTES_MAX - self.size)
        if growth <= 0 or not self._budget.take_growth(growth):
            return 0
        self.size += growth
        return growth

    def close(self) -> None:
        """Give the window back to the link's budget."""
        self._budget.give_back(self.size)
        self.size = 0
