"""One request seen from the provider: its upload, its answer, the credit it may spend."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from aimo_node.domain.ids import ContentType, RequestId
from aimo_node.errors import LocalProtocolError, PayloadTooLarge, RemoteProtocolError
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import ReceiveWindow, SendCredit
from aimo_node.protocol.frames import Request, Response, StreamChunk
from aimo_node.protocol.outgoing import Assembly, BodyPieces
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import RequestInput, RequestState, next_request_state

_TEXT = int(ContentType.TEXT)
_JSON = int(ContentType.JSON)
_FRAME_COST = limits.CREDIT_FRAME_BYTES


class IncomingRequest:
    """State of one request this node serves. Owned by the session."""

    __slots__ = (
        "_outbox",
        "acknowledged",
        "answer_body",
        "assembly",
        "backlog_bytes",
        "credit",
        "next_index",
        "request_id",
        "state",
        "waiting",
        "window",
    )

    def __init__(
        self, request: Request, outbox: Outbox, window: ReceiveWindow | None = None
    ) -> None:
        """`window` is there if the request has an upload."""
        self.request_id = RequestId(request.request_id)
        self._outbox = outbox
        self.state = RequestState.SENT
        self.credit = SendCredit(request.credit)
        self.next_index = 0
        self.acknowledged = 0
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.backlog_bytes = 0
        self.assembly = Assembly(request.body_bytes) if request.body_bytes else None
        self.window = window
        self.answer_body: BodyPieces | None = None

    def step(self, step: RequestInput) -> None:
        """Move on.

        Raises:
            LocalProtocolError: we may not do that now.
        """
        state = next_request_state(self.state, step)
        if state is None:
            raise LocalProtocolError(f"{step.value} while the request is {self.state.value}")
        self.state = state

    def acknowledge(self, chunk_index: int) -> None:
        """Book the chunks the edge says it has received.

        Raises:
            RemoteProtocolError: fewer than it said before, or more than there were.
        """
        if not self.acknowledged <= chunk_index <= self.next_index:
            raise RemoteProtocolError(f"acknowledges chunk {chunk_index} out of order")
        self.acknowledged = chunk_index

    def send_text(self, delta: str) -> None:
        """Queue a text delta; what lacks credit waits."""
        try:
            payload = delta.encode()
        except UnicodeEncodeError:  # an engine may cut a surrogate pair in two
            payload = delta.encode(errors="replace")
        if len(payload) <= limits.TEXT_PIECE_BYTES:
            self._send_chunk(_TEXT, payload)
            return
        for piece in cut_text(payload, limits.TEXT_PIECE_BYTES):
            self._send_chunk(_TEXT, piece)

    def send_json(self, choices: bytes) -> None:
        """Queue a JSON delta; without credit it waits.

        Raises:
            PayloadTooLarge: over one frame.
        """
        if len(choices) > limits.PAYLOAD_BYTES_MAX:
            size, most = len(choices), limits.PAYLOAD_BYTES_MAX
            raise PayloadTooLarge(f"the engine sent one delta of {size} bytes; at most {most} fit")
        self._send_chunk(_JSON, choices)

    def _send_chunk(self, content_type: int, payload: bytes) -> None:
        if self.state is not RequestState.ANSWERING:
            self.step(RequestInput.CHUNK)
        frame = codec.encode(
            codec.TextChunk(self.request_id, self.next_index, content_type, payload)
        )
        self.next_index += 1
        cost = len(payload) + _FRAME_COST
        credit = self.credit
        if not self.waiting and (cost <= credit.left or credit.allows(cost)):
            credit.left -= cost
            self._outbox.put(self.request_id, frame)
        else:
            self.waiting.append((cost, frame))
            self.backlog_bytes += cost

    def send_final(self, chunk: StreamChunk) -> None:
        """End a streamed answer, after everything that waits."""
        self.step(RequestInput.FINAL_CHUNK)
        frame = codec.encode(chunk)
        if self.waiting:
            self.waiting.append((0, frame))
        else:
            self._outbox.put(self.request_id, frame)

    def send_response(self, response: Response, body: bytes) -> None:
        """Answer as a whole; a body that does not fit into the frame follows in pieces."""
        whole = not response.body_bytes
        self.step(RequestInput.RESPONSE if whole else RequestInput.RESPONSE_HEAD)
        self._outbox.put(self.request_id, codec.encode(response))
        if not whole:
            self.answer_body = BodyPieces(body, self.credit)
            self.release()

    def release(self) -> None:
        """Queue what may go now that there is more credit."""
        waiting = self.waiting
        while waiting and self.credit.allows(waiting[0][0]):
            cost, frame = waiting.popleft()
            self.credit.spend(cost)
            self.backlog_bytes -= cost
            self._outbox.put(self.request_id, frame)
        if self.answer_body is not None:
            for piece in self.answer_body.ready(self.request_id):
                self._outbox.put(self.request_id, piece)
            if self.answer_body.done:
                self.answer_body = None
                self.step(RequestInput.LAST_BODY)

    @property
    def done(self) -> bool:
        """Whether the answer has ended and nothing of it waits for credit."""
        return self.state is RequestState.ENDED and not self.waiting


def cut_text(payload: bytes, size: int) -> Iterator[bytes]:
    """Cut UTF-8 into pieces of at most `size` bytes without splitting a character."""
    start, total = 0, len(payload)
    while start < total:
        end = min(start + size, total)
        while end < total and payload[end] & 0xC0 == 0x80:
            end -= 1
        yield payload[start:end]
        start = end
