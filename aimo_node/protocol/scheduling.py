"""What is written next: control frames first, then one request after another by bytes.

Deficit round robin (Shreedhar and Varghese, 1995) over the requests that have something to send,
so that a long answer cannot hold up a short one.
"""

from __future__ import annotations

from collections import deque

from aimo_node.domain.ids import RequestId
from aimo_node.errors import RemoteProtocolError
from aimo_node.protocol import limits


class _Lane:
    """Encoded frames of one request."""

    __slots__ = ("deficit", "frames", "sent")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.deficit = 0
        self.sent = False


class Outbox:
    """Encoded frames on their way to one peer; hands out writes of at most `WRITE_BYTES_MAX`."""

    __slots__ = ("_control", "_control_bytes", "_lanes", "_tail", "_turns")

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._lanes: dict[RequestId, _Lane] = {}
        self._turns: deque[RequestId] = deque()
        self._tail = b""

    def __bool__(self) -> bool:
        return bool(self._control or self._lanes or self._tail)

    def put_control(self, frame: bytes) -> None:
        """Queue a frame that overtakes all payload.

        Raises:
            RemoteProtocolError: the peer reads nothing while it makes us answer.
        """
        self._control_bytes += len(frame)
        if self._control_bytes > limits.CONTROL_BYTES_MAX:
            raise RemoteProtocolError("the peer does not read its control frames")
        self._control.append(frame)

    def put(self, request_id: RequestId, frame: bytes) -> None:
        """Queue a frame of one request, in order with the others of that request."""
        lane = self._lanes.get(request_id)
        if lane is None:
            lane = self._lanes[request_id] = _Lane()
            self._turns.append(request_id)
        lane.frames.append(frame)

    def has(self, request_id: RequestId) -> bool:
        """Whether frames of that request wait."""
        return request_id in self._lanes

    def discard(self, request_id: RequestId) -> bool:
        """Drop what waits for that request; True if none of its waiting frames had begun to go."""
        lane = self._lanes.pop(request_id, None)
        if lane is None:
            return False
        self._turns.remove(request_id)
        return not lane.sent

    def take(self) -> bytes:
        """The next write; empty if nothing waits."""
        if self._tail:
            return self._cut([])
        out: list[bytes] = []
        room = self._take_control(out)
        if room > 0:
            self._take_lanes(out, room)
        return self._cut(out)

    def _take_control(self, out: list[bytes]) -> int:
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

    def _take_lanes(self, out: list[bytes], room: int) -> None:
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
                    return
                out.append(frames.popleft())
                lane.deficit -= size
                lane.sent = True
                room -= size
            turns.popleft()
            if frames:
                turns.append(request_id)
            else:
                del lanes[request_id]

    def _cut(self, out: list[bytes]) -> bytes:
        data = self._tail or (out[0] if len(out) == 1 else b"".join(out))
        self._tail = data[limits.WRITE_BYTES_MAX :]
        return data[: limits.WRITE_BYTES_MAX] if self._tail else data

    def clear(self) -> None:
        """Drop everything but the rest of a frame that is half written."""
        self._control.clear()
        self._control_bytes = 0
        self._lanes.clear()
        self._turns.clear()
