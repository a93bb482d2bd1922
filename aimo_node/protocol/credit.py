"""Credit: how many payload bytes of one request may be on the way.

The receiver owns a `ReceiveWindow`, the sender a `SendCredit`. Rule for both, so that the receiver
can check the sender: a payload of n bytes may go if n bytes of credit are left, or, when it is
larger than that, if at least `CREDIT_LONE_BYTES` are left.
"""

from __future__ import annotations

from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits


class SendCredit:
    """The sender's account of one request."""

    __slots__ = ("left",)

    def __init__(self, initial: int) -> None:
        self.left = initial

    def allows(self, size: int) -> bool:
        """Whether a payload of `size` bytes may go now."""
        return size <= self.left or self.left >= limits.CREDIT_LONE_BYTES

    def spend(self, size: int) -> None:
        """Book a payload that goes."""
        self.left -= size

    def add(self, size: int) -> None:
        """Book a Credit frame.

        Raises:
            RemoteProtocolError: more than a link may ever grant.
        """
        self.left += size
        if self.left > limits.CREDIT_LINK_BYTES_MAX:
            raise RemoteProtocolError("more credit than a link may carry", CloseCode.CreditExceeded)


class WindowBudget:
    """All receive windows of one link; keeps their sum under `CREDIT_LINK_BYTES_MAX`."""

    __slots__ = ("left",)

    def __init__(self, total: int = limits.CREDIT_LINK_BYTES_MAX) -> None:
        self.left = total

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False if that would be too much."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Return what a window held."""
        self.left += size


class ReceiveWindow:
    """The receiver's account of one request.

    The window starts small and doubles, within the link's budget, when the sender has used it up
    although the consumer keeps up: then the window is what slows the stream down.
    """

    __slots__ = ("_budget", "_left", "_unacknowledged", "size")

    def __init__(self, budget: WindowBudget, size: int = limits.CREDIT_INITIAL_BYTES) -> None:
        """`size` bytes must have been taken from `budget` before."""
        self._budget = budget
        self.size = size
        self._left = size
        self._unacknowledged = 0

    def receive(self, size: int) -> None:
        """Book an arriving payload.

        Raises:
            RemoteProtocolError: the sender had no credit for it.
        """
        if size > self._left and self._left < limits.CREDIT_LONE_BYTES:
            message = f"{size} payload bytes with {self._left} bytes of credit left"
            raise RemoteProtocolError(message, CloseCode.CreditExceeded)
        self._left -= size

    def consume(self, size: int) -> int:
        """Book payload the consumer has taken; returns the bytes to grant now, 0 for none yet."""
        self._unacknowledged += size
        if self._unacknowledged < self.size // 2:
            return 0
        grant = self._unacknowledged
        self._unacknowledged = 0
        if self._left <= self.size // 4:
            growth = min(self.size, limits.CREDIT_WINDOW_BYTES_MAX - self.size)
            if growth > 0 and self._budget.take(growth):
                self.size += growth
                grant += growth
        self._left += grant
        return grant

    def close(self) -> None:
        """Give the window back to the link's budget."""
        self._budget.give_back(self.size)
        self.size = 0
