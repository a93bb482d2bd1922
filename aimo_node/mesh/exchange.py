"""Both ends of a request on a link: `LinkExchange` at the edge, `ServedRequest` at the provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.domain.ids import ContentType, Endpoint, PeerId, RequestId
from aimo_node.errors import CodedError, InvalidRequest, RequestCancelled
from aimo_node.protocol.events import PartReceived, RequestReceived
from aimo_node.protocol.session import Session


class Carrier(Protocol):
    """What a request needs of the link that carries it."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""

    @property
    def path(self) -> str:
        """How the peer is reached."""

    @property
    def session(self) -> Session:
        """The protocol's state."""

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request this node sent."""

    def consumed(self, request_id: RequestId, size: int) -> None:
        """The consumer took payload bytes."""

    def flush(self) -> None:
        """There may be output."""


class Parking:
    """Where one task waits to be woken; cheaper than an Event for each token."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None
        """The one that waits, if one does."""

    async def wait(self) -> None:
        """Sleep until `wake`. Only one task may wait: a second one gets a BusyResourceError."""
        if self.task is not None:
            raise trio.BusyResourceError("another task waits here")
        self.task = current_task()
        await wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED

    def wake(self) -> None:
        """Let the waiting task run, if one waits."""
        task = self.task
        if task is not None:
            self.task = None
            reschedule(task)


class LinkExchange:
    """One request in flight, seen from the edge. One task reads it."""

    __slots__ = ("_bytes", "_error", "_link", "_parking", "_parts", "_taken", "path", "request_id")

    def __init__(self, link: Carrier, request_id: RequestId) -> None:
        self._link = link
        self.request_id = request_id
        self.path = link.path
        self._parts: list[AnswerPart] = []
        self._bytes = 0
        self._taken = 0
        self._error: CodedError | None = None
        self._parking = Parking()

    def put(self, event: PartReceived) -> None:
        """A part arrived; called by the link's reader."""
        self._parts.append(event.part)
        self._bytes += event.size
        self._parking.wake()

    def fail(self, error: CodedError) -> None:
        """The request ended with an error; called by the link."""
        self._error = error
        self._parking.wake()

    async def receive(self) -> Sequence[AnswerPart]:
        """See `ports.peer_network.Exchange`. Safe to cancel: nothing is lost."""
        if self._taken:
            self._link.consumed(self.request_id, self._taken)
            self._taken = 0
        while not self._parts:
            if self._error is not None:
                raise self._error
            await self._parking.wait()
        parts, self._parts = self._parts, []
        self._taken, self._bytes = self._bytes, 0
        return parts

    def cancel(self) -> None:
        """Stop the request at the provider; a task that waits in `receive` hears of it."""
        self._link.cancel(self.request_id)
        if self._error is None:
            self.fail(RequestCancelled("the request was cancelled"))


class ServedRequest:
    """One request in flight, seen from the provider; satisfies `ports.peer_network`."""

    __slots__ = (
        "_answering",
        "_body",
        "_body_here",
        "_credit",
        "_link",
        "deadline_ms",
        "endpoint",
        "headers",
        "peer",
        "public_id",
        "request_id",
        "scope",
        "stream",
    )

    def __init__(self, link: Carrier, event: RequestReceived) -> None:
        """Raises InvalidRequest for an endpoint this version does not know."""
        request = event.request
        self._link = link
        self._answering = link.session.answering
        self._body = event.body
        self._body_here = trio.Event()
        self._credit = Parking()
        self.scope = trio.CancelScope()
        self.request_id = RequestId(request.request_id)
        self.peer: PeerId = link.peer
        try:
            self.endpoint = Endpoint(request.endpoint)
        except ValueError as error:
            raise InvalidRequest(f"unknown endpoint number {request.endpoint}") from error
        self.stream = request.stream
        self.deadline_ms = request.deadline_ms
        self.headers: Mapping[str, str] = request.headers
        self.public_id = request.public_id

    @property
    def inline(self) -> bool:
        """Whether the body came with the request."""
        return self._body is not None

    def body_arrived(self, body: bytes) -> None:
        """The upload is complete; called by the link."""
        self._body = body
        self._body_here.set()

    def credit_arrived(self) -> None:
        """The backlog may have shrunk; called by the link."""
        self._credit.wake()

    def accept(self, model_digest: bytes = b"", queue_position: int = 0) -> None:
        """Tell the edge that the request was admitted; uploads may go on from here."""
        self._answering.accept(self.request_id, model_digest, queue_position)
        self._link.flush()

    async def read_body(self) -> bytes:
        """The whole body, once it is here."""
        if self._body is None:
            await self._body_here.wait()
        body, self._body = self._body, b""
        return body or b""

    def send_text(self, delta: str) -> None:
        """Send text; stops the request when too much waits for a slow consumer."""
        if self._answering.send_text(self.request_id, delta):
            self._overflow()
        self._link.flush()

    def send_json(self, choices: bytes) -> None:
        """Send a JSON delta.

        Raises:
            PayloadTooLarge: over one frame.
        """
        if self._answering.send_json(self.request_id, choices):
            self._overflow()
        self._link.flush()

    def _overflow(self) -> None:
        """The engine cannot be held back and the consumer does not keep up."""
        self.fail(RequestCancelled("the consumer is too slow for an engine that cannot wait"))
        self.scope.cancel()

    def finish(self, finish: Finish) -> None:
        """End a streamed answer."""
        self._answering.finish(self.request_id, finish)
        self._link.flush()

    def respond(self, content_type: ContentType, payload: bytes, finish: Finish) -> None:
        """Answer as a whole."""
        self._answering.respond(self.request_id, content_type, payload, finish)
        self._link.flush()

    def fail(self, error: CodedError) -> None:
        """End the request with an error."""
        self._answering.fail(self.request_id, error)
        self._link.flush()

    @property
    def backlog_bytes(self) -> int:
        """Payload bytes that wait for credit."""
        return self._answering.backlog_bytes(self.request_id)

    async def wait_backlog_below(self, limit_bytes: int) -> None:
        """Return when less than `limit_bytes` wait for credit."""
        while self.backlog_bytes >= limit_bytes:
            await self._credit.wait()
