"""One WebSocket between its connection and the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from trio.lowlevel import checkpoint
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.events import Event as WireEvent
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from aimo_node.edge.serving.owner import ConnectionOwner
from aimo_node.edge.serving.state import ServingState

STREAM_ID = 1


class WebSocketStream(WSStream):  # type: ignore[misc]
    """Hypercorn's WebSocket with bounds: no compression, refused messages end it, errors are
    answered.

    A few bytes of compressed zeros become megabytes in one step of the decompressor, before any
    limit is asked.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        state: ServingState,
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        """`send` takes the stream's events; StreamClosed is the last one."""
        super().__init__(
            state.app,
            state.config,
            state.context,
            owner,
            owner.is_tls,
            owner.client,
            owner.server,
            send,
            STREAM_ID,
        )
        self._owner = owner
        self.close_code = int(CloseReason.ABNORMAL_CLOSURE)

    async def handle(self, event: Event) -> None:
        """Takes an event of the connection: the request, then its bytes."""
        if isinstance(event, Request):
            kept = [pair for pair in event.headers if pair[0] != b"sec-websocket-extensions"]
            event = replace(event, headers=kept)
        await super().handle(event)
        inbox = self._owner.inbox
        if inbox is not None and inbox.is_full:
            self._owner.hold()

    async def app_send(self, message: dict[str, Any] | None) -> None:
        """Takes a message of the application (ASGI `send`); None once it has returned."""
        if self.closed:
            await checkpoint()  # as for HTTP: a producer that never waits
        else:
            await super().app_send(message)

    def goodbye(self) -> bytes:
        """The frame that says that the server ends; nothing where a close is under way."""
        if self.closed or self.state is not ASGIWebsocketState.CONNECTED:
            return b""
        if self.connection.state is not ConnectionState.OPEN:
            return b""
        frame: bytes = self.connection.send(CloseConnection(code=CloseReason.SERVICE_RESTART))
        return frame

    async def _send_wsproto_event(self, event: WireEvent) -> None:
        try:
            data = self.connection.send(event)
        except LocalProtocolError:
            # Closing: nothing more is sent, and again a producer that never waits has to notice.
            await checkpoint()
        else:
            await self._owner.transport.write(data)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if self.closed:
                return
            if isinstance(event, Message):
                if not await self._take(event):
                    return
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._end(event)
                return

    async def _take(self, piece: Message[Any]) -> bool:
        """Adds a piece of a message, and hands over what is complete; False when that ends the
        WebSocket."""
        try:
            self.buffer.extend(piece)
        except FrameTooLargeError:
            await self._fail(CloseReason.MESSAGE_TOO_BIG)
            return False
        if piece.message_finished:
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()
        if not self._owner.charge(self.buffer.length):
            await self._fail(CloseReason.TRY_AGAIN_LATER)
            return False
        return True

    async def _end(self, event: CloseConnection) -> None:
        if self.connection.state is ConnectionState.OPEN:
            await self._fail(event.code)  # not a frame of theirs: it could not be parsed
            return
        self.close_code = int(event.code)
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _fail(self, code: int) -> None:
        self.close_code = int(code)
        await self._send_wsproto_event(CloseConnection(code=code))
        await self.send(StreamClosed(stream_id=self.stream_id))


def received(data: bytes) -> Data:
    """The event for bytes that came."""
    return Data(stream_id=STREAM_ID, data=data)
