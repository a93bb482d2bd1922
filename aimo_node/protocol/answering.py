"""The provider's half of a session: requests that arrived and the answers going out."""

from __future__ import annotations

from typing import Final

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import ContentType, RequestId
from aimo_node.errors import (
    CloseCode,
    CodedError,
    Draining,
    InvalidRequest,
    LocalProtocolError,
    Overloaded,
    PayloadTooLarge,
    RemoteProtocolError,
    UnsupportedContentType,
)
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import ReceiveWindow, WindowBudget, cost_of
from aimo_node.protocol.events import (
    BodyReceived,
    CreditReceived,
    Event,
    RequestReceived,
    RequestWithdrawn,
)
from aimo_node.protocol.failures import error_frame
from aimo_node.protocol.frames import (
    INFERENCE,
    Accepted,
    Body,
    Cancel,
    Credit,
    Request,
    Response,
    StreamChunk,
    UsageCount,
    clamp_unsigned32,
)
from aimo_node.protocol.incoming import IncomingRequest
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import RequestInput, RequestState

_HTTP_OK: Final = 200
_JSON: Final = int(ContentType.JSON)


class Answering:
    """Requests the peer sent over one link, by id."""

    def __init__(self, outbox: Outbox, budget: WindowBudget) -> None:
        self._outbox = outbox
        self._budget = budget
        self._uploads_bytes = 0
        self._ended: dict[RequestId, None] = {}
        self.requests: dict[RequestId, IncomingRequest] = {}

    def on_request(self, frame: Request, events: list[Event], *, draining: bool) -> None:
        """A request arrived: reported, or refused at once."""
        request_id = RequestId(frame.request_id)
        if request_id in self.requests or request_id in self._ended:
            raise RemoteProtocolError("request id is in use or was used before")
        if frame.body_bytes and frame.payload:
            raise RemoteProtocolError("a Request has a payload or a body, not both")
        refusal = self._refusal(frame, draining=draining)
        if refusal is None and frame.body_bytes:
            refusal = self._reserve_window()
        if refusal is not None:
            self._outbox.put_control(codec.encode(error_frame(request_id, refusal)))
            return
        window = ReceiveWindow(self._budget) if frame.body_bytes else None
        state = IncomingRequest(frame, self._outbox, window)
        self.requests[request_id] = state
        self._uploads_bytes += frame.body_bytes
        events.append(RequestReceived(frame, None if frame.body_bytes else frame.payload))

    def _refusal(self, frame: Request, *, draining: bool) -> CodedError | None:
        if draining:
            return Draining("the provider is going away")
        if frame.request_type != INFERENCE:
            return InvalidRequest(f"unknown request type {frame.request_type}")
        if frame.content_type != _JSON:
            return UnsupportedContentType("a request is JSON")
        full = len(self.requests) >= limits.REQUESTS_PER_LINK_MAX
        if full or self._outbox.congested:
            return Overloaded("too many requests on this link", retry_after_seconds=1)
        if self._uploads_bytes + frame.body_bytes > limits.UPLOADS_BYTES_MAX:
            return Overloaded("too many uploads on this link", retry_after_seconds=1)
        return None

    def _reserve_window(self) -> CodedError | None:
        if self._budget.take(limits.CREDIT_INITIAL_BYTES):
            return None
        return Overloaded("too many uploads on this link", retry_after_seconds=1)

    def accept(self, request_id: RequestId, model_digest: bytes, queue_position: int) -> None:
        """Tell the edge that the request was admitted; its upload may begin.

        Ignored if the request has gone: its edge may have cancelled it meanwhile.

        Raises:
            LocalProtocolError: accepted before, or a digest over `DIGEST_BYTES_MAX`.
        """
        state = self.requests.get(request_id)
        if state is None:
            return
        if len(model_digest) > limits.DIGEST_BYTES_MAX:
            raise LocalProtocolError(f"a model digest of {len(model_digest)} bytes does not fit")
        state.step(RequestInput.ACCEPTED)
        frame = Accepted(request_id, model_digest, clamp_unsigned32(queue_position))
        self._outbox.put(request_id, codec.encode(frame))

    def on_body(self, frame: Body, events: list[Event]) -> bool:
        """A piece of an upload; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.assembly is None or state.window is None or state.state is RequestState.SENT:
            raise RemoteProtocolError("Body without an accepted upload")
        cost = cost_of(len(frame.payload))
        state.window.receive(cost)
        body = state.assembly.add(frame)
        if body is None:
            grant = state.window.consume(cost)
            if grant:
                self._outbox.put_control(codec.encode(Credit(request_id, grant, 0)))
            return True
        self._end_upload(state)
        events.append(BodyReceived(request_id, body))
        return True

    def on_credit(self, frame: Credit, events: list[Event]) -> bool:
        """More of an answer may go; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        state.acknowledge(frame.chunk_index)
        if self._outbox.congested:
            raise RemoteProtocolError("grants credit, but does not read", CloseCode.CreditExceeded)
        state.credit.add(frame.credit_bytes)
        state.release()
        events.append(CreditReceived(request_id))
        self._end_if_done(request_id, state)
        return True

    def on_cancel(self, frame: Cancel, events: list[Event]) -> None:
        """The edge wants no more."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return
        state.acknowledge(frame.chunk_index)
        self._outbox.discard(request_id)
        self._end(request_id, state)
        events.append(RequestWithdrawn(request_id, frame.chunk_index))

    def end_all(self) -> None:
        """The link has ended, and with it every request."""
        for request_id, state in list(self.requests.items()):
            self._end(request_id, state)

    def send_text(self, request_id: RequestId, delta: str) -> bool:
        """Queue a text delta; ignored if the request has gone.

        Returns:
            True if more than `BACKLOG_BYTES_MAX` wait for credit: the request is to be given up.
        """
        state = self.requests.get(request_id)
        if state is None:
            return False
        state.send_text(delta)
        return state.backlog_bytes > limits.BACKLOG_BYTES_MAX

    def send_json(self, request_id: RequestId, choices: bytes) -> bool:
        """Queue a JSON delta; ignored if the request has gone. Returns the same as `send_text`.

        Raises:
            PayloadTooLarge: over one frame.
        """
        state = self.requests.get(request_id)
        if state is None:
            return False
        state.send_json(choices)
        return state.backlog_bytes > limits.BACKLOG_BYTES_MAX

    def finish(self, request_id: RequestId, finish: Finish) -> None:
        """End a streamed answer; ignored if the request has gone."""
        state = self.requests.get(request_id)
        if state is None:
            return
        state.send_final(
            StreamChunk(
                request_id=request_id,
                chunk_index=state.next_index,
                content_type=int(ContentType.TEXT),
                payload=b"",
                is_final=True,
                finish_reason=int(finish.reason),
                usage=_count(finish.usage),
            )
        )
        self._end_if_done(request_id, state)

    def respond(
        self,
        request_id: RequestId,
        content_type: ContentType,
        payload: bytes,
        finish: Finish,
    ) -> None:
        """Answer as a whole; ignored if the request has gone.

        Raises:
            PayloadTooLarge: over `BODY_BYTES_MAX`.
            LocalProtocolError: not accepted before.
        """
        state = self.requests.get(request_id)
        if state is None:
            return
        if len(payload) > limits.BODY_BYTES_MAX:
            size, most = len(payload), limits.BODY_BYTES_MAX
            raise PayloadTooLarge(f"the engine answered {size} bytes; at most {most} fit")
        inline = len(payload) <= limits.INLINE_BYTES_MAX
        response = Response(
            request_id=request_id,
            status_code=_HTTP_OK,
            content_type=int(content_type),
            payload=payload if inline else b"",
            headers={},
            finish_reason=int(finish.reason),
            usage=_count(finish.usage),
            body_bytes=0 if inline else len(payload),
        )
        state.send_response(response, payload)
        self._end_if_done(request_id, state)

    def fail(self, request_id: RequestId, error: CodedError) -> None:
        """End a request with an error; what waits for credit is dropped. Ignored if it has gone."""
        state = self.requests.get(request_id)
        if state is None:
            return
        self._outbox.put(request_id, codec.encode(error_frame(request_id, error)))
        self._end(request_id, state)

    def backlog_bytes(self, request_id: RequestId) -> int:
        """What waits for credit, in bytes of credit."""
        state = self.requests.get(request_id)
        return 0 if state is None else state.backlog_bytes

    def _end_upload(self, state: IncomingRequest) -> None:
        if state.assembly is not None:
            self._uploads_bytes -= state.assembly.size
            state.assembly = None
        if state.window is not None:
            state.window.close()
            state.window = None

    def _end_if_done(self, request_id: RequestId, state: IncomingRequest) -> None:
        if state.done:
            self._end(request_id, state)

    def _end(self, request_id: RequestId, state: IncomingRequest) -> None:
        self._end_upload(state)
        state.waiting.clear()
        state.backlog_bytes = 0
        del self.requests[request_id]
        self._ended[request_id] = None
        if len(self._ended) > limits.ENDED_REQUESTS_MAX:
            del self._ended[next(iter(self._ended))]


def _count(usage: Usage) -> UsageCount:
    return UsageCount(
        clamp_unsigned32(usage.prompt_tokens),
        clamp_unsigned32(usage.completion_tokens),
        clamp_unsigned32(usage.cached_tokens),
    )
