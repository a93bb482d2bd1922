"""Fault: libp2p sends a WINDOW_UPDATE for nearly every read, and never checks the peer's credit.

`ReceiveWindow` tells the peer once per half window, and says when the peer took what it had
not been granted.
"""

from __future__ import annotations

from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES, RECEIVE_WINDOW_BYTES_MAX


class ReceiveWindow:
    """Credit of one stream, seen from the receiving side."""

    __slots__ = ("_consumed", "_granted", "_size", "_size_max")

    def __init__(self) -> None:
        self._granted = RECEIVE_WINDOW_BYTES
        self._size = RECEIVE_WINDOW_BYTES
        self._size_max = RECEIVE_WINDOW_BYTES_MAX
        self._consumed = 0

    def keep_size(self) -> None:
        """Never grow: whoever holds many windows of one peer has to bound their sum."""
        self._size_max = self._size

    def arrive(self, count: int) -> bool:
        """Note `count` bytes announced by the peer; false if it had no credit for them."""
        self._granted -= count
        return self._granted >= 0

    def consume(self, count: int) -> int:
        """Note `count` bytes read by us; the credit to send now, mostly none.

        The window grows to its largest size with the first update: only who is read gets one.
        """
        self._consumed += count
        if self._consumed * 2 < self._size:
            return 0
        credit = self._consumed + self._size_max - self._size
        self._size = self._size_max
        self._consumed = 0
        self._granted += credit
        return credit
