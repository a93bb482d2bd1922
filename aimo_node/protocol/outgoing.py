"""One request seen from the edge: its upload, its answer, its receive window."""

from __future__ import annotations

from collections.abc import Iterator

from aimo_node.domain.ids import RequestId
from aimo_node.errors import RemoteProtocolError
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import ReceiveWindow, SendCredit, WindowBudget, cost_of
from aimo_node.protocol.frames import Body, Response
from aimo_node.protocol.states import RequestInput, RequestState, next_request_state


class Assembly:
    """A body that arrives in pieces, bounded by its declared size."""

    __slots__ = ("_data", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._data = bytearray()

    def add(self, piece: Body) -> bytes | None:
        """Append a piece; the whole body once the last one is here.

        Raises:
            RemoteProtocolError: a gap, too much, or a last piece that comes too early.
        """
        if piece.offset != len(self._data):
            raise RemoteProtocolError(f"body piece at {piece.offset}, expected {len(self._data)}")
        self._data += piece.payload
        complete = len(self._data) == self.size
        if len(self._data) > self.size or piece.last != complete:
            raise RemoteProtocolError(f"body does not have the declared {self.size} bytes")
        return bytes(self._data) if complete else None


class BodyPieces:
    """A body on its way out, cut into Body frames as credit allows."""

    __slots__ = ("_body", "_offset", "_size", "credit")

    def __init__(self, body: bytes, credit: SendCredit) -> None:
        self._body = memoryview(body)
        self._size = len(body)
        self._offset = 0
        self.credit = credit

    def ready(self, request_id: RequestId) -> Iterator[bytes]:
        """Encoded frames that may go now."""
        while not self.done:
            offset = self._offset
            piece = self._body[offset : offset + limits.BODY_PIECE_BYTES]
            cost = cost_of(len(piece))
            if not self.credit.allows(cost):
                return
            self.credit.spend(cost)
            self._offset = offset + len(piece)
            yield codec.encode(Body(request_id, offset, bytes(piece), self.done))
        self._body = memoryview(b"")  # credit may still arrive; the bytes need not stay for it

    @property
    def done(self) -> bool:
        """Whether every piece has been handed out."""
        return self._offset >= self._size


class OutgoingRequest:
    """State of one request this node sent. Owned by the session."""

    __slots__ = ("assembly", "next_index", "response", "state", "upload", "window")

    def __init__(self, budget: WindowBudget, body: bytes | None) -> None:
        self.state = RequestState.SENT
        self.window = ReceiveWindow(budget)
        self.next_index = 0
        self.upload = None if body is None else BodyPieces(body, SendCredit(0))
        self.response: Response | None = None
        self.assembly: Assembly | None = None

    def step(self, step: RequestInput) -> None:
        """Move on.

        Raises:
            RemoteProtocolError: the peer may not do that now.
        """
        state = next_request_state(self.state, step)
        if state is None:
            raise RemoteProtocolError(f"{step.value} while the request is {self.state.value}")
        self.state = state

    def take_chunk(self, index: int, cost: int) -> None:
        """Check a chunk that is not the final one: the hot path.

        Raises:
            RemoteProtocolError: a gap, no credit, or not answering.
        """
        if index != self.next_index:
            raise RemoteProtocolError(f"chunk {index}, expected {self.next_index}")
        if self.state is not RequestState.ANSWERING:
            self.step(RequestInput.CHUNK)
        self.next_index = index + 1
        self.window.receive(cost)
