"""The edge's half of a session: requests this node sent and the answers coming back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta, Usage
from aimo_node.domain.ids import ContentType, Endpoint, FinishReason, RequestId
from aimo_node.errors import (
    CODED_ERRORS,
    CodedError,
    EngineFailed,
    ErrorCode,
    LocalProtocolError,
    Overloaded,
    PayloadTooLarge,
    RemoteProtocolError,
)
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import WindowBudget
from aimo_node.protocol.events import Event, PartReceived, RequestFailed
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
from aimo_node.protocol.outgoing import Assembly, OutgoingRequest
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import RequestInput, RequestState

_TEXT: Final = int(ContentType.TEXT)
_JSON: Final = int(ContentType.JSON)
INFERENCE: Final = 1
"""The only request type of version 1."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What travels beside a request: time left, allow-listed headers, the consumer's public id."""

    deadline_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)
    public_id: str = ""


class Asking:
    """Requests this node sent over one link, by id."""

    def __init__(self, outbox: Outbox, budget: WindowBudget) -> None:
        self._outbox = outbox
        self._budget = budget
        self.requests: dict[RequestId, OutgoingRequest] = {}

    def open(
        self,
        request_id: RequestId,
        endpoint: Endpoint,
        body: bytes,
        *,
        stream: bool,
        terms: Terms,
    ) -> None:
        """Send a request; `body` is canonical JSON.

        Raises:
            PayloadTooLarge: the body is over `BODY_BYTES_MAX`.
            Overloaded: the link carries as many requests as it may.
            LocalProtocolError: the id is in use.
        """
        if len(body) > limits.BODY_BYTES_MAX:
            raise PayloadTooLarge(
                f"the request has {len(body)} bytes; at most {limits.BODY_BYTES_MAX} are taken"
            )
        if request_id in self.requests:
            raise LocalProtocolError("request id is in use")
        full = len(self.requests) >= limits.REQUESTS_PER_LINK_MAX
        if full or not self._budget.take(limits.CREDIT_INITIAL_BYTES):
            raise Overloaded("the link to this provider carries as many requests as it may")
        inline = len(body) <= limits.INLINE_BYTES_MAX
        self.requests[request_id] = OutgoingRequest(self._budget, None if inline else body)
        frame = Request(
            request_id=request_id,
            provider_id="",
            endpoint=int(endpoint),
            request_type=INFERENCE,
            content_type=_JSON,
            payload=body if inline else b"",
            body_bytes=0 if inline else len(body),
            stream=stream,
            headers=dict(terms.headers),
            deadline_ms=terms.deadline_ms,
            public_id=terms.public_id,
        )
        self._outbox.put(request_id, codec.encode(frame))

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; nothing of it is reported after this. Unknown ids are ignored."""
        state = self.requests.get(request_id)
        if state is None:
            return
        unsent = self._outbox.discard(request_id) and state.state is RequestState.SENT
        if not unsent:
            self._outbox.put_control(codec.encode(Cancel(request_id, state.next_index)))
        self._end(request_id, state)

    def consumed(self, request_id: RequestId, size: int) -> None:
        """The consumer took `size` payload bytes: grant new credit when it is worth a frame."""
        state = self.requests.get(request_id)
        if state is None:
            return
        grant = state.window.consume(size)
        if grant:
            frame = codec.encode(Credit(request_id, grant, state.next_index))
            self._outbox.put_control(frame)

    def on_chunk(self, frame: StreamChunk, events: list[Event]) -> None:
        """A chunk arrived: the hot path."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return
        payload = frame.payload
        if not frame.is_final:
            state.take_chunk(frame.chunk_index, len(payload))
            part = _part(frame.content_type, payload)
            events.append(PartReceived(request_id, part, len(payload)))
            return
        if frame.chunk_index != state.next_index or payload:
            raise RemoteProtocolError("the final chunk has the wrong index or a payload")
        state.step(RequestInput.FINAL_CHUNK)
        self._finish(request_id, state, frame, events)

    def on_accepted(self, frame: Accepted, events: list[Event]) -> None:
        """The provider took the request: an upload may begin."""
        state = self.requests.get(RequestId(frame.request_id))
        if state is None:
            return
        state.step(RequestInput.ACCEPTED)
        events.append(frame)
        if state.upload is not None:
            state.upload.credit.add(limits.CREDIT_INITIAL_BYTES)
            self._upload(RequestId(frame.request_id), state)

    def on_credit(self, frame: Credit) -> bool:
        """More of an upload may go; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.upload is None:
            raise RemoteProtocolError("credit for a request that uploads nothing")
        state.upload.credit.add(frame.credit_bytes)
        self._upload(request_id, state)
        return True

    def _upload(self, request_id: RequestId, state: OutgoingRequest) -> None:
        if state.upload is not None:
            for piece in state.upload.ready(request_id):
                self._outbox.put(request_id, piece)

    def on_response(self, frame: Response, events: list[Event]) -> None:
        """A whole answer, or its head."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return
        if frame.body_bytes:
            if frame.payload:
                raise RemoteProtocolError("a Response has a payload or a body, not both")
            state.step(RequestInput.RESPONSE_HEAD)
            state.response = frame
            state.assembly = Assembly(frame.body_bytes)
            return
        state.step(RequestInput.RESPONSE)
        events.append(PartReceived(request_id, _part(frame.content_type, frame.payload), 0))
        self._finish(request_id, state, frame, events)

    def on_body(self, frame: Body, events: list[Event]) -> bool:
        """A piece of a large answer; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.assembly is None or state.response is None:
            raise RemoteProtocolError("Body without a Response before it")
        size = len(frame.payload)
        state.window.receive(size)
        body = state.assembly.add(frame)
        if body is None:
            self.consumed(request_id, size)
            return True
        head = state.response
        state.step(RequestInput.LAST_BODY)
        events.append(PartReceived(request_id, _part(head.content_type, body), 0))
        self._finish(request_id, state, head, events)
        return True

    def on_error(self, frame: Error, events: list[Event]) -> None:
        """The provider ended the request."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return
        state.step(RequestInput.ERROR)
        self._outbox.discard(request_id)
        self._end(request_id, state)
        events.append(RequestFailed(request_id, _coded(frame)))

    def _finish(
        self,
        request_id: RequestId,
        state: OutgoingRequest,
        end: StreamChunk | Response,
        events: list[Event],
    ) -> None:
        try:
            finish = Finish(FinishReason(end.finish_reason), _usage(end.usage))
        except ValueError as error:
            raise RemoteProtocolError(f"unknown finish reason {end.finish_reason}") from error
        self._outbox.discard(request_id)
        self._end(request_id, state)
        events.append(PartReceived(request_id, finish, 0))

    def _end(self, request_id: RequestId, state: OutgoingRequest) -> None:
        state.state = RequestState.ENDED
        state.window.close()
        del self.requests[request_id]


def _part(content_type: int, payload: bytes) -> AnswerPart:
    if content_type == _TEXT:
        try:
            return payload.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a text delta is not UTF-8") from error
    if content_type == _JSON:
        return JsonDelta(payload)
    raise RemoteProtocolError(f"unknown content type {content_type}")


def _usage(count: UsageCount) -> Usage:
    return Usage(count.prompt_tokens, count.completion_tokens, count.cached_tokens)


def _coded(frame: Error) -> CodedError:
    try:
        kind = CODED_ERRORS[ErrorCode(frame.error_code)]
    except (ValueError, KeyError):
        kind = EngineFailed
    retry_after = frame.details.get("retry_after_ms", "")
    return kind(
        frame.message,
        param=frame.details.get("param"),
        retry_after_seconds=int(retry_after) / 1000 if retry_after.isdecimal() else None,
    )
