"""The edge's half of a session: requests this node sent and the answers coming back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aimo_node.domain.answer import AnswerPart, Finish, JsonDelta, Usage
from aimo_node.domain.ids import ContentType, Endpoint, FinishReason, RequestId
from aimo_node.errors import (
    CloseCode,
    InvalidRequest,
    LocalProtocolError,
    NetworkError,
    Overloaded,
    PayloadTooLarge,
    RemoteProtocolError,
)
from aimo_node.protocol import codec, limits
from aimo_node.protocol.credit import WindowBudget, cost_of
from aimo_node.protocol.events import Event, PartReceived, RequestFailed
from aimo_node.protocol.failures import coded_error
from aimo_node.protocol.frames import (
    INFERENCE,
    Accepted,
    Body,
    Cancel,
    Credit,
    Error,
    Request,
    Response,
    StreamChunk,
    UsageCount,
    clamp_unsigned32,
)
from aimo_node.protocol.outgoing import Assembly, BodyPieces, OutgoingRequest
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import RequestInput, RequestState

_TEXT: Final = int(ContentType.TEXT)
_JSON: Final = int(ContentType.JSON)
_FRAME_COST: Final = limits.CREDIT_FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Terms:
    """What travels beside a request: time left, allow-listed headers, the consumer's public id."""

    deadline_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)
    public_id: str = ""


class Asking:
    """Requests this node sent over one link, by id.

    `requests_max`: what the peer takes at a time; none before its Hello and after the end.
    """

    def __init__(self, outbox: Outbox, budget: WindowBudget) -> None:
        self._outbox = outbox
        self._budget = budget
        self._bodies_bytes = 0
        self.requests_max: int | None = None
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
            InvalidRequest: more or longer headers than the wire carries.
            Overloaded: the link carries as many requests as it may.
            NetworkError: the link is not open yet, or has ended.
            LocalProtocolError: the id is in use, or the public id is too long.
        """
        if len(body) > limits.BODY_BYTES_MAX:
            raise PayloadTooLarge(
                f"the request has {len(body)} bytes; at most {limits.BODY_BYTES_MAX} are taken"
            )
        if request_id in self.requests:
            raise LocalProtocolError("request id is in use")
        if self.requests_max is None:
            raise NetworkError("the link to the provider is not open")
        _check(terms)
        inline = len(body) <= limits.INLINE_BYTES_MAX
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
            deadline_ms=clamp_unsigned32(terms.deadline_ms),
            public_id=terms.public_id,
        )
        full = len(self.requests) >= self.requests_max or self._outbox.congested
        if full or not self._budget.take(limits.CREDIT_INITIAL_BYTES):
            raise Overloaded("the link to this provider carries as many requests as it may")
        self.requests[request_id] = OutgoingRequest(self._budget, None if inline else body)
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
        """The consumer took parts of that `size`: grant new credit when it is worth a frame."""
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
            cost = len(payload) + _FRAME_COST
            state.take_chunk(frame.chunk_index, cost)
            events.append(PartReceived(request_id, _part(frame.content_type, payload), cost))
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
            self._upload(RequestId(frame.request_id), state.upload, limits.CREDIT_INITIAL_BYTES)

    def on_credit(self, frame: Credit) -> bool:
        """More of an upload may go; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.upload is None or state.state is RequestState.SENT:
            raise RemoteProtocolError("credit for a request that uploads nothing yet")
        if self._outbox.congested:
            raise RemoteProtocolError("grants credit, but does not read", CloseCode.CreditExceeded)
        self._upload(request_id, state.upload, frame.credit_bytes)
        return True

    def _upload(self, request_id: RequestId, upload: BodyPieces, credit_bytes: int) -> None:
        upload.credit.add(credit_bytes)
        for piece in upload.ready(request_id):
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
            self._expect_body(request_id, state, frame, events)
            return
        state.step(RequestInput.RESPONSE)
        events.append(PartReceived(request_id, _part(frame.content_type, frame.payload), 0))
        self._finish(request_id, state, frame, events)

    def _expect_body(
        self,
        request_id: RequestId,
        state: OutgoingRequest,
        head: Response,
        events: list[Event],
    ) -> None:
        if self._bodies_bytes + head.body_bytes > limits.UPLOADS_BYTES_MAX:
            self.cancel(request_id)
            error = Overloaded("too many large answers at a time from this provider")
            events.append(RequestFailed(request_id, error))
            return
        self._bodies_bytes += head.body_bytes
        state.response = head
        state.assembly = Assembly(head.body_bytes)

    def on_body(self, frame: Body, events: list[Event]) -> bool:
        """A piece of a large answer; False if the id is none of ours."""
        request_id = RequestId(frame.request_id)
        state = self.requests.get(request_id)
        if state is None:
            return False
        if state.assembly is None or state.response is None:
            raise RemoteProtocolError("Body without a Response before it")
        cost = cost_of(len(frame.payload))
        state.window.receive(cost)
        body = state.assembly.add(frame)
        if body is None:
            self.consumed(request_id, cost)
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
        events.append(RequestFailed(request_id, coded_error(frame)))

    def end_all(self) -> None:
        """The link has ended, and with it every request."""
        self.requests_max = None
        for request_id, state in list(self.requests.items()):
            self._end(request_id, state)

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
        if state.assembly is not None:
            self._bodies_bytes -= state.assembly.size
            state.assembly = None
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


def _check(terms: Terms) -> None:
    """The peer would end the link over a field it does not take: found here, one request fails."""
    if len(terms.public_id) > limits.PUBLIC_ID_CHARS_MAX or not _encodable(terms.public_id):
        raise LocalProtocolError("the public id does not fit")
    if len(terms.headers) > limits.HEADERS_MAX:
        raise InvalidRequest(f"more than {limits.HEADERS_MAX} headers cannot travel")
    for name, value in terms.headers.items():
        if (
            len(name) > limits.HEADER_NAME_CHARS_MAX
            or len(value) > limits.HEADER_VALUE_CHARS_MAX
            or not _encodable(name + value)
        ):
            most = limits.HEADER_VALUE_CHARS_MAX
            raise InvalidRequest(f"a header has at most {most} characters of text", param=name)


def _encodable(text: str) -> bool:
    """Whether UTF-8 can carry it, which knows no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
