"""The provider's half of a session: requests that arrived and the answers going out."""

from __future__ import annotations

from typing import Final

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import ContentType, RequestId
from aimo_node.errors import (
    CodedError,
    Draining,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
)
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import ReceiveWindow, WindowBudget
from aimo_node.protocol.events import (
    BodyReceived,
    CreditReceived,
    Event,
    RequestReceived,
    RequestWithdrawn,
)
from aimo_node.protocol.frames import (
    Accepted,
    Body,
    Cancel,
    Credit,
    Error,
    Request,
    Response,
    StreamChunk,
    UsageCount,
)
from aimo_node.protocol.incoming import IncomingRequest
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import RequestInput

_HTTP_OK: Final = 200


class Answering:
    """Requests the peer sent over one link, by id."""

    def __init__(self, outbox: Outbox, budget: WindowBudget) -> None:
        self._outbox = outbox
        self._budget = budget
        self._uploads_bytes = 0
        self.requests: dict[RequestId, IncomingRequest] = {}

    def on_request(self, frame: Request, events: list[Event], *, draining: bool) -> None:
        """A request arrived: reported, or refused at once."""
        request_id = RequestId(frame.request_id)
        if request_id in self.requests:
            raise RemoteProtocolError("request id is in use")
        refusal = self._refusal(frame, draining=draining)
        if refusal is not None:
            self._outbox.put_control(codec.encode(error_frame(request_id, refusal)))
            return
        if frame.body_bytes and frame.payload:
            raise RemoteProtocolError("a Request has a payload or a body, not both")
        state = IncomingRequest(frame, self._outbox)
        self.requests[request_id] = state
        self._uploads_bytes += frame.body_bytes
        events.append(RequestReceived(frame, None if frame.body_bytes else frame.payload))

    def _refusal(self, frame: Request, *, draining: bool) -> CodedError | None:
        if draining:
            return Draining("the provider is going away")
        if len(self.requests) >= limits.REQUESTS_PER_LINK_MAX:
            return Overloaded("too many requests on this link", retry_after_seconds=1)
        if self._uploads_bytes + frame.body_bytes > limits.UPLOADS_BYTES_MAX:
            return Overloaded("too many uploads on this link", retry_after_seconds=1)
        return None

    def accept(self, request_id: RequestId, model_digest: bytes, queue_position: int) -> None:
        """Tell the edge that the request was admitted; its upload may begin."""
        state = self._state(request_id)
        state.step(RequestInput.ACCEPTED)
        if state.assembly is not None:
            if not self._budget.take(limits.CREDIT_INITIAL_BYTES):
                self.fail(request_id, Overloaded("too many uploads", retry_after_seconds=1))
                return
            state.window = ReceiveWindow(self._budget)
        self._outbox.put(
            request_id, codec.encode(Accepted(request_id, model_digest, queue_position))
        )

    def on_body(self, frame: Body, events: list[Event]) -> bool:
        """A piece of an upload; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.assembly is None or state.window is None:
            raise RemoteProtocolError("Body without an accepted upload")
        size = len(frame.payload)
        state.window.receive(size)
        body = state.assembly.add(frame)
        if body is None:
            grant = state.window.consume(size)
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
        if not state.acknowledged <= frame.chunk_index <= state.next_index:
            raise RemoteProtocolError(f"acknowledges chunk {frame.chunk_index} out of order")
        state.acknowledged = frame.chunk_index
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
        self._outbox.discard(request_id)
        self._end(request_id, state)
        events.append(RequestWithdrawn(request_id, frame.chunk_index))

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
            LocalProtocolError: over `BODY_BYTES_MAX`, or not accepted before.
        """
        state = self.requests.get(request_id)
        if state is None:
            return
        if len(payload) > limits.BODY_BYTES_MAX:
            raise LocalProtocolError(f"an answer of {len(payload)} bytes is too large")
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
        """Payload bytes that wait for credit."""
        state = self.requests.get(request_id)
        return 0 if state is None else state.backlog_bytes

    def _state(self, request_id: RequestId) -> IncomingRequest:
        state = self.requests.get(request_id)
        if state is None:
            raise LocalProtocolError("no such request")
        return state

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


def error_frame(request_id: RequestId, error: CodedError) -> Error:
    """The Error frame that tells the edge about `error`."""
    details: dict[str, str] = {}
    if error.param:
        details["param"] = error.param[: limits.DETAIL_CHARS_MAX]
    if error.retry_after_seconds is not None:
        details["retry_after_ms"] = str(max(0, round(error.retry_after_seconds * 1000)))
    message = error.message[: limits.MESSAGE_CHARS_MAX]
    return Error(int(error.code), message, details, request_id)


def _count(usage: Usage) -> UsageCount:
    return UsageCount(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
