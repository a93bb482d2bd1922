"""Cuts a server-sent event stream into its events, sans-I/O: bytes in, names and data out.

By the WHATWG grammar: lines end in LF, CRLF or CR, ``data`` lines of one event are joined, comments
and the fields ``id`` and ``retry`` are passed over, a byte order mark at the start is too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aimo_node.errors import EngineFailed

EVENT_BYTES_MAX: Final = 1 << 20
"""One event; the arguments of a tool call in one piece are the longest that occur."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event; `name` is empty if the stream gave none."""

    name: bytes
    data: bytes


class EventSource:
    """One stream on its way in. Used by one task.

    Args:
        event_bytes_max: a longer event is an error.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""
        self._after_return = False
        self._started = False
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes; it may be cut anywhere.

        Raises:
            EngineFailed: an event is too long.
        """
        lines = (self._rest + self._plain_ends(data)).split(b"\n")
        self._rest = lines.pop()
        self._check_size(len(self._rest))
        if not self._started and lines:
            self._started = True
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        events: list[Event] = []
        for line in lines:
            if line:
                self._take_field(line)
            else:
                self._complete(events)
        return events

    def close(self) -> list[Event]:
        """The stream is over: an event that lacks only its blank line.

        The grammar drops it, but some servers close right after their last line.
        """
        rest, self._rest = self._rest, b""
        if rest:
            self._take_field(rest)
        events: list[Event] = []
        self._complete(events)
        return events

    def _plain_ends(self, data: bytes) -> bytes:
        """`data` with LF as its only line end, also where CRLF was cut in two."""
        if self._after_return and data:
            self._after_return = False
            data = data[1:] if data[:1] == b"\n" else data
        if b"\r" not in data:
            return data
        self._after_return = data[-1:] == b"\r"
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            self._check_size(self._size)
        elif name == b"event":
            self._name = value

    def _complete(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(self._name, b"\n".join(self._data)))
            self._data = []
        self._name = b""
        self._size = 0

    def _check_size(self, size: int) -> None:
        if size > self._event_bytes_max:
            most = self._event_bytes_max
            raise EngineFailed(f"the engine sent an event of more than {most} bytes")
