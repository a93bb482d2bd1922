"""One HTTP request between its connection and the application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypercorn.protocol.events import Event
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.utils import UnexpectedMessageError
from trio.lowlevel import checkpoint

from aimo_node.edge.serving.answer import Answer
from aimo_node.edge.serving.owner import ConnectionOwner
from aimo_node.edge.serving.state import ServingState

STREAM_ID = 1
"""HTTP/1.1 has one stream at a time."""


_ANSWERING = ASGIHTTPState.RESPONSE  # a plain name: an enumeration is looked up by hash


class HttpStream(HTTPStream):  # type: ignore[misc]
    """Hypercorn's stream, which describes the request to the application, with a short way for the
    answer.

    The end of the answer is reported before anything else may run: Quart cancels the task that
    sends it as soon as it hears of the disconnect, and in Hypercorn that task still has the
    connection to recycle.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        state: ServingState,
        answer: Answer,
        *,
        on_end: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """`on_end` is called when the answer is complete, `on_failure` when the application left it
        incomplete."""
        super().__init__(
            state.app,
            state.config,
            state.context,
            owner,
            owner.is_tls,
            owner.client,
            owner.server,
            _send_event,
            STREAM_ID,
        )
        self._answer = answer
        self._write = owner.transport.write
        self._serving = state
        self._on_end = on_end
        self._on_failure = on_failure

    async def app_send(self, message: dict[str, Any] | None) -> None:
        """Takes a message of the application (ASGI `send`); None once it has returned.

        Raises:
            MalformedAnswerError: the answer would break the framing.
            UnexpectedMessageError: a message out of order.
        """
        if self.closed:
            # The consumer left, and a producer that never waits has to be told by its cancellation.
            await checkpoint()
        elif message is None:
            self._on_failure()
        elif message["type"] == "http.response.body" and self.state is _ANSWERING:
            if message.get("more_body", False):
                if data := self._answer.body(message.get("body", b"")):
                    await self._write(data)
            else:
                await self._end(self._answer.end(message.get("body", b"")))
        elif message["type"] == "http.response.start" and self.state is ASGIHTTPState.REQUEST:
            self._start(message)
        else:
            raise UnexpectedMessageError(self.state, message["type"])

    def _start(self, message: dict[str, Any]) -> None:
        answer = self._answer
        answer.keeps_connection &= not self._serving.is_draining
        answer.start(message["status"], message.get("headers", ()), self._serving.date)
        self.state = ASGIHTTPState.RESPONSE

    async def _end(self, last: bytes) -> None:
        self.state = ASGIHTTPState.CLOSED
        if last:
            await self._write(last)
        if not self.closed:
            self._on_end()


async def _send_event(event: Event) -> None:
    raise AssertionError(f"an HTTP stream writes by itself, yet it sent {event}")
