"""HTTP/1.1 on one connection: bytes to requests, answers to bytes, one request at a time.

h11 parses, one fresh parser per request. Hypercorn's own class for this waits for the running
answer when another request is pipelined, and so does not see the consumer leave; it forgets its
timers when Quart cancels the task that recycles the connection; and it passes every chunk through
three layers.
"""

from __future__ import annotations

import h11
import structlog
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.typing import ConnectionState
from trio.lowlevel import checkpoint

from aimo_node.edge.serving.answer import Answer
from aimo_node.edge.serving.http_stream import STREAM_ID, HttpStream
from aimo_node.edge.serving.owner import ConnectionOwner, Phase
from aimo_node.edge.serving.refusal import (
    APPLICATION_FAILED,
    NO_ROOM,
    Refusal,
    body_too_large,
    from_parser,
)
from aimo_node.edge.serving.request_head import read_head
from aimo_node.edge.serving.state import ServingState
from aimo_node.edge.serving.websocket_stream import WebSocketStream, received

EARLY_BYTES_MAX = 65_536
"""Pipelined requests kept while an answer runs; then reading stops. Real clients pipeline a few
lines, if at all."""
PIECES_PER_CHECKPOINT = 256
"""A body in chunks of one byte makes thousands of pieces of one read; others must get their
turn."""

log = structlog.get_logger(__name__)

_BEFORE_HEAD = frozenset({Phase.FRESH, Phase.IDLE})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Http1Protocol:
    """Parses requests and frames answers for one connection; the tasks of that connection share it.

    The reader task feeds `handle`; the application's task ends answers. Only one of them parses at
    a time: bytes that come while a request is answered are kept, and parsed by a task of their own
    afterwards.
    """

    __slots__ = (
        "_answer",
        "_arrived_bytes",
        "_body_bytes",
        "_early",
        "_is_counted",
        "_is_parsing",
        "_is_received",
        "_owner",
        "_parser",
        "_state",
        "_stream",
    )

    def __init__(self, owner: ConnectionOwner, state: ServingState) -> None:
        self._owner = owner
        self._state = state
        self._parser = self._new_parser()
        self._stream: HttpStream | WebSocketStream | None = None
        self._answer: Answer | None = None
        self._is_received = False  # the running request, to its last byte
        self._is_parsing = False  # in a task of its own
        self._is_counted = False  # among the running requests that a drain waits for
        self._early = b""
        self._body_bytes = 0
        self._arrived_bytes = 0  # since the last answer

    async def handle(self, data: bytes) -> None:
        """Takes what came from the consumer."""
        if self._is_parsing or self._is_received:
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX:
                self._owner.hold()
        else:
            await self._consume(data)

    def refuse(self, refusal: Refusal) -> None:
        """Answers in place of the application and closes; where its answer is on the way already,
        only closes."""
        is_started = self._answer is not None and self._answer.is_started
        self.consumer_left()
        if is_started:
            self._owner.abort()
        else:
            self._owner.transport.write_nowait(refusal.encode())
            self._owner.finish()

    def consumer_left(self) -> None:
        """Tells the application that nobody waits for the rest. Idempotent."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        stream.closed = True
        if self._owner.inbox is not None:
            if isinstance(stream, WebSocketStream):
                self._owner.inbox.close({"type": "websocket.disconnect", "code": stream.close_code})
            else:
                self._owner.inbox.close({"type": "http.disconnect"})
        self._owner.charge(0)
        if self._is_counted:
            self._is_counted = False
            self._state.request_ended()

    def say_goodbye(self) -> None:
        """Tells a WebSocket that the server ends."""
        if isinstance(self._stream, WebSocketStream):
            self._owner.transport.write_nowait(self._stream.goodbye())

    async def _consume(self, data: bytes) -> None:
        if isinstance(self._stream, WebSocketStream):
            self._owner.enter(Phase.WEBSOCKET)
            await self._feed_websocket(self._stream, data)
            return
        self._parser.receive_data(data)
        self._arrived_bytes += len(data)
        try:
            await self._parse()
        except h11.RemoteProtocolError as error:
            self.refuse(from_parser(error.error_status_hint))
        if self._stream is None and self._owner.phase in _BEFORE_HEAD:
            self._owner.enter(Phase.HEAD)

    async def _parse(self) -> None:
        """Takes from the parser what it has: a request's head, pieces of its body, its end."""
        if self._stream is None:
            event = self._parser.next_event()
            if type(event) is not h11.Request or not await self._begin(event):
                return
        pieces: list[bytes] = []
        while type(event := self._parser.next_event()) is h11.Data:
            pieces.append(bytes(event.data))
            if not self._admit(len(event.data)):
                return
            if not len(pieces) % PIECES_PER_CHECKPOINT:
                await checkpoint()
            if self._stream is None:
                return  # answered, refused or left meanwhile
        self._deliver(pieces, is_last=type(event) is h11.EndOfMessage)

    def _deliver(self, pieces: list[bytes], *, is_last: bool) -> None:
        """Hands the application what one read brought of the body."""
        self._is_received = is_last
        if is_last:
            self._owner.enter(Phase.ANSWER)
        elif self._owner.phase is not Phase.BODY:
            self._owner.enter(Phase.BODY)
        inbox = self._owner.inbox
        if inbox is None or not (pieces or is_last):
            return
        inbox.put_nowait(
            {"type": "http.request", "body": b"".join(pieces), "more_body": not is_last}
        )
        if inbox.is_full:
            self._owner.hold()

    async def _begin(self, request: h11.Request) -> bool:
        """Starts the application on a request; whether it may have a body to come."""
        headers = list(request.headers)
        head = read_head(request, headers, self._arrived_bytes, self._state.limits)
        if isinstance(head, Refusal):
            self.refuse(head)
            return False
        self._body_bytes = 0
        answer = self._answer = Answer(
            keeps_connection=head.keeps_connection,
            is_http10=head.is_http10,
            is_head=head.is_head,
        )
        self._state.table.set_busy(self._owner)
        if not self._state.is_draining:
            self._state.running += 1
            self._is_counted = True
        event = Request(
            stream_id=STREAM_ID,
            headers=headers,
            http_version=request.http_version.decode("ascii"),
            method=request.method.decode("ascii"),
            raw_path=head.target,
            state=ConnectionState(self._state.app_state),
        )
        if head.is_websocket:
            await self._begin_websocket(event)
        else:
            await self._begin_http(event, answer)
        return not head.is_websocket

    async def _begin_http(self, event: Request, answer: Answer) -> None:
        self._stream = HttpStream(
            self._owner,
            self._state,
            answer,
            on_end=self._answer_ended,
            on_failure=self._application_failed,
        )
        await self._stream.handle(event)
        if self._parser.they_are_waiting_for_100_continue:
            self._owner.transport.write_nowait(_CONTINUE)

    async def _begin_websocket(self, event: Request) -> None:
        self._owner.enter(Phase.WEBSOCKET)
        websocket = WebSocketStream(self._owner, self._state, self._send_event)
        self._stream = websocket
        await websocket.handle(event)
        early, _ = self._parser.trailing_data
        await self._feed_websocket(websocket, early)

    async def _feed_websocket(self, websocket: WebSocketStream, data: bytes) -> None:
        if data:
            await websocket.handle(received(data))
        if websocket.closed and self._stream is websocket:
            self._answer_ended()  # refused by Hypercorn itself: no application will end it

    def _admit(self, piece_bytes: int) -> bool:
        self._body_bytes += piece_bytes
        limits = self._state.limits
        if self._body_bytes > limits.body_bytes_max:
            self.refuse(body_too_large(limits.body_bytes_max))
            return False
        if not self._owner.charge(self._body_bytes):
            self.refuse(NO_ROOM)
            return False
        return True

    def _application_failed(self) -> None:
        log.warning("http.answer_incomplete")
        self.refuse(APPLICATION_FAILED)

    def _answer_ended(self) -> None:
        """The answer is written: the connection takes the next request or closes. Nothing can come
        in between."""
        answer, self._answer = self._answer, None
        keeps_connection = answer is not None and answer.keeps_connection and self._is_received
        self.consumer_left()
        if not keeps_connection:
            self._owner.finish()
            return
        self._is_received = False
        self._owner.enter(Phase.IDLE)
        self._state.table.set_waiting(self._owner)
        early, _ = self._parser.trailing_data
        self._parser = self._new_parser()
        self._arrived_bytes = 0
        if early or self._early:
            self._early = early + self._early
            self._is_parsing = True
            self._owner.spawn(self._parse_early)
        self._owner.resume()

    async def _parse_early(self) -> None:
        """Goes on with what came while the last answer ran."""
        while self._early and not self._is_received and self._owner.phase is not Phase.LINGER:
            early, self._early = self._early, b""
            await self._consume(early)
        self._is_parsing = False
        self._owner.resume()

    async def _send_event(self, event: Event) -> None:
        """Takes what Hypercorn's WebSocket stream has to say."""
        if isinstance(event, Data):
            await self._owner.transport.write(event.data)
        elif isinstance(event, StreamClosed):
            if self._stream is not None:
                self._answer_ended()
        elif self._answer is None:
            return  # the consumer left
        elif isinstance(event, Response):
            if event.status_code == 101:
                await self._owner.transport.write(self._answer.switch(event.headers))
            else:
                self._answer.keeps_connection = False
                self._answer.start(event.status_code, event.headers, self._state.date)
        elif isinstance(event, Body):
            await self._owner.transport.write(self._answer.body(event.data))
        elif isinstance(event, EndBody):
            await self._owner.transport.write(self._answer.end(b""))

    def _new_parser(self) -> h11.Connection:
        return h11.Connection(
            h11.SERVER, max_incomplete_event_size=self._state.limits.header_bytes_max
        )
