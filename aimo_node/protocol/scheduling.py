"""What is written next: control frames first, then one request after another by bytes.

Deficit round robin (Shreedhar and Varghese, 1995) over the requests that have something to send,
so that a long answer cannot hold up a short one. Announcements take their turn like a request.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from aimo_node.domain.ids import RequestId
from aimo_node.protocol import limits

_ANNOUNCEMENTS: Final = RequestId(b"")
"""The lane of frames that stand alone; no request has an id of no bytes."""


class _Lane:
    """Encoded frames of one request."""

    __slots__ = ("deficit", "frames", "sent")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.deficit = 0
        self.sent = False


class Outbox:
    """Encoded frames on their way to one peer; hands out writes of at most `WRITE_BYTES_MAX`.

    `overflowed`: the peer makes us answer or announce, but does not read; frames were dropped, so
    the link has to end.
    """

    __slots__ = (
        "_control",
        "_control_bytes",
        "_lanes",
        "_queued_bytes",
        "_tail",
        "_turns",
        "overflowed",
    )

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._lanes: dict[RequestId, _Lane] = {}
        self._queued_bytes = 0
        self._turns: deque[RequestId] = deque()
        self._tail = b""
        self.overflowed = False

    def __bool__(self) -> bool:
        return bool(self._control or self._lanes or self._tail)

    @property
    def congested(self) -> bool:
        """Whether so much waits that the peer cannot be reading."""
        return (
            self._queued_bytes > limits.OUTBOX_BYTES_MAX
            or len(self._lanes) > limits.OUTBOX_REQUESTS_MAX
        )

    @property
    def busy(self) -> bool:
        """Whether frames of requests or announcements wait."""
        return bool(self._lanes)

    def put_control(self, frame: bytes) -> None:
        """Queue a frame that overtakes all payload, or set `overflowed`."""
        if self._control_bytes + len(frame) > limits.CONTROL_BYTES_MAX:
            self.overflowed = True
            return
        self._control_bytes += len(frame)
        self._control.append(frame)

    def put_announcement(self, frame: bytes) -> None:
        """Queue a frame that stands alone, in order with the others, or set `overflowed`."""
        if self._queued_bytes + len(frame) > limits.ANNOUNCEMENT_BYTES_MAX:
            lane = self._lanes.get(_ANNOUNCEMENTS)
            waiting = sum(map(len, lane.frames)) if lane is not None else 0
            if waiting + len(frame) > limits.ANNOUNCEMENT_BYTES_MAX:
                self.overflowed = True
                return
        self.put(_ANNOUNCEMENTS, frame)

    def put(self, request_id: RequestId, frame: bytes) -> None:
        """Queue a frame of one request, in order with the others of that request."""
        lane = self._lanes.get(request_id)
        if lane is None:
            lane = self._lanes[request_id] = _Lane()
            self._turns.append(request_id)
        lane.frames.append(frame)
        self._queued_bytes += len(frame)

    def discard(self, request_id: RequestId) -> bool:
        """Drop what waits for that request; True if none of its waiting frames had begun to go."""
        lane = self._lanes.pop(request_id, None)
        if lane is None:
            return False
        self._turns.remove(request_id)
        self._queued_bytes -= sum(map(len, lane.frames))
        return not lane.sent

    def take(self) -> bytes:
        """The next write; empty if nothing waits."""
        if self._tail:
            return self._cut([])
        if len(self._turns) == 1 and not self._control:
            frames = self._lanes[self._turns[0]].frames
            if len(frames) == 1 and len(frames[0]) <= limits.WRITE_BYTES_MAX:
                self._turns.clear()
                self._lanes.clear()
                self._queued_bytes = 0
                return frames[0]  # alone: nothing to join, and nobody to share with
        out: list[bytes] = []
        room = self._take_control(out)
        if room > 0:
            self._queued_bytes -= room - self._take_lanes(out, room)
        return self._cut(out)

    def _take_control(self, out: list[bytes]) -> int:
        """Returns the room left in this write, in bytes."""
        room = limits.WRITE_BYTES_MAX
        control = self._control
        while control and room > 0:
            frame = control[0]
            if out and len(frame) > room:
                return 0
            out.append(control.popleft())
            room -= len(frame)
            self._control_bytes -= len(frame)
        return room

    def _take_lanes(self, out: list[bytes], room: int) -> int:
        """Returns the room left in this write, in bytes; below zero if a frame has to be cut."""
        lanes, turns = self._lanes, self._turns
        while turns and room > 0:
            request_id = turns[0]
            lane = lanes[request_id]
            if lane.deficit <= 0:
                lane.deficit += limits.QUANTUM_BYTES
            frames = lane.frames
            while frames and lane.deficit > 0:
                size = len(frames[0])
                if out and size > room:
                    return room
                out.append(frames.popleft())
                lane.deficit -= size
                lane.sent = True
                room -= size
            turns.popleft()
            if frames:
                turns.append(request_id)
            else:
                del lanes[request_id]
        return room

    def _cut(self, out: list[bytes]) -> bytes:
        data = self._tail or (out[0] if len(out) == 1 else b"".join(out))
        self._tail = data[limits.WRITE_BYTES_MAX :]
        return data[: limits.WRITE_BYTES_MAX] if self._tail else data

    def clear(self) -> None:
        """Drop everything but the rest of a frame that is half written."""
        self._control.clear()
        self._control_bytes = 0
        self._lanes.clear()
        self._queued_bytes = 0
        self._turns.clear()
        self.overflowed = False

    def drop_tail(self) -> None:
        """Forget also the rest of a frame that is half written: nobody will read it."""
        self._tail = b""
