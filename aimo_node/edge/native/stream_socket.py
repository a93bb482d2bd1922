"""``WS /v1/stream``: several requests at a time over one WebSocket.

The consumer sends ``request``, ``cancel`` and ``ping``; it gets ``chunk`` messages and for each
request exactly one of ``done``, ``cancelled`` and ``error``. An ``error`` whose id is null answers
a message that is no request of its own: unreadable, or with the id of one that still runs.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
import structlog
import trio
from msgspec import Meta, Struct
from quart import Websocket

from aimo_node.domain.answer import Finish
from aimo_node.edge.inference import OpenAnswer, cut_short, out_of_order
from aimo_node.edge.json_body import check, decode_object
from aimo_node.edge.native.request import read_native
from aimo_node.edge.openai.chat import ChatCall, ChatDesk
from aimo_node.edge.openai.chunks import Frame
from aimo_node.edge.problem import problem_of
from aimo_node.errors import (
    CodedError,
    InvalidRequest,
    PayloadTooLarge,
    RateLimitExceeded,
)

GOING_AWAY: Final = 1001
NORMAL: Final = 1000
ID_LENGTH_MAX: Final = 128  # a UUID has 36

_encode: Final = msgspec.json.Encoder().encode
PONG: Final = _encode({"type": "pong"}).decode()

ShortId = Annotated[str, Meta(min_length=1, max_length=ID_LENGTH_MAX)]
SmallId = Annotated[int, Meta(ge=-(2**53), le=2**53)]
MessageId: TypeAlias = ShortId | SmallId

log = structlog.get_logger(__name__)


class RequestMessage(Struct, tag_field="type", tag="request"):
    """A new request under an id of the consumer's choice."""

    id: MessageId
    endpoint: str
    body: dict[str, Any]


class CancelMessage(Struct, tag_field="type", tag="cancel"):
    """Stop a request; ignored if it has ended, which may be news on its way."""

    id: MessageId


class PingMessage(Struct, tag_field="type", tag="ping"):
    """Are you there?"""


Message: TypeAlias = RequestMessage | CancelMessage | PingMessage
_MESSAGE: Final[type[Message]] = Message  # type: ignore[assignment]  # msgspec reads unions, too


class RunningRequest:
    """One request on the socket; `scope` ends it for the consumer or for the end of a drain."""

    __slots__ = ("is_cancelled", "scope")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.is_cancelled = False

    def cancel(self) -> None:
        """The consumer wants no more of it."""
        self.is_cancelled = True
        self.scope.cancel()


class StreamSocket:
    """One WebSocket. One task reads it, one per request writes to it."""

    def __init__(self, chat: ChatDesk, websocket: Websocket, consumer: str) -> None:
        self._chat = chat
        self._settings = chat.desk.settings
        self._websocket = websocket
        self._consumer = consumer
        self._requests: dict[str | int, RunningRequest] = {}
        self._one_ended = trio.Event()
        self._is_closed = False

    async def serve(self) -> None:
        """Run until the consumer leaves, which cancels this, or the socket is closed from here."""
        await self._websocket.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_drained, nursery.cancel_scope)
            code = await self._read(nursery)
            await self._close(code, "nothing to do")
            nursery.cancel_scope.cancel()

    async def _close_when_drained(self, socket: trio.CancelScope) -> None:
        await self._chat.desk.drain.begun.wait()
        while self._requests:
            await self._one_ended.wait()
        await self._close(GOING_AWAY, "this node is going away")
        socket.cancel()

    async def _close(self, code: int, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._websocket.close(code, reason)

    async def _read(self, nursery: trio.Nursery) -> int:
        """Take messages until the socket has been idle for too long; returns a close code."""
        while True:
            message: str | bytes = ""
            with trio.move_on_after(self._settings.socket_idle_seconds) as silence:
                message = await self._websocket.receive()
            if not silence.cancelled_caught:
                await self._take(message, nursery)
            elif not self._requests:
                return NORMAL

    async def _take(self, text: str | bytes, nursery: trio.Nursery) -> None:
        answers_to: str | int | None = None
        try:
            value = self._decode(text)
            answers_to = self._id_of_new(value)
            match check(value, _MESSAGE):
                case PingMessage():
                    await self._websocket.send(PONG)
                case CancelMessage(id=name):
                    if name in self._requests:
                        self._requests[name].cancel()
                case RequestMessage(id=name):
                    self._start(name, value, nursery)
        except CodedError as error:
            await self._send_error(answers_to, error)

    def _decode(self, text: str | bytes) -> dict[str, Any]:
        if len(text) > self._settings.socket_message_bytes_max:
            raise PayloadTooLarge("The message is too large.")
        return decode_object(text)

    def _id_of_new(self, value: dict[str, Any]) -> str | int | None:
        """The id an error may carry without being taken for the end of another request."""
        name = value.get("id")
        is_id = type(name) is int or (type(name) is str and len(name) <= ID_LENGTH_MAX)
        is_new = is_id and value.get("type") == "request" and name not in self._requests
        return name if is_new else None

    def _start(self, name: str | int, value: dict[str, Any], nursery: trio.Nursery) -> None:
        if name in self._requests:
            raise InvalidRequest("A request with this id is still running.", param="id")
        if len(self._requests) >= self._settings.socket_requests_max:
            raise RateLimitExceeded(
                f"No more than {self._settings.socket_requests_max} requests at a time "
                "on one socket."
            )
        call = read_native(value)
        opened = self._chat.admit(call, self._consumer)
        request = self._requests[name] = RunningRequest(self._chat.desk.running.enter())
        nursery.start_soon(self._run, name, request, call, opened)

    async def _run(
        self, name: str | int, request: RunningRequest, call: ChatCall, opened: OpenAnswer
    ) -> None:
        """The root of one request: exactly one end goes out unless the socket is gone."""
        failure: CodedError | None = None
        try:
            with request.scope:
                await self._answer(name, call, opened)
                opened.succeed()
            if request.scope.cancelled_caught and not request.is_cancelled:
                failure = cut_short()
        except CodedError as error:
            failure = error
        except Exception:  # the root of a request: its consumer hears of a bug
            log.exception("socket_request.failed", **opened.headers)
            failure = out_of_order("while answering")
        finally:
            self._chat.desk.running.leave(request.scope)
            if failure is not None:
                opened.fail(failure)
            opened.close()
            del self._requests[name]
            self._one_ended.set()
            self._one_ended = trio.Event()
        await self._send(_end(name, request, failure, opened.route))

    async def _answer(self, name: str | int, call: ChatCall, opened: OpenAnswer) -> None:
        await opened.start()
        frame = Frame(b'{"type":"chunk","id":%b,"data":' % _encode(name), b"}")
        if not call.stream:
            whole = await self._chat.gather(call, opened)
            await self._websocket.send((frame.opening + whole + frame.closing).decode())
            return
        await opened.hold(self._settings.header_hold_seconds)
        writer = self._chat.writer(call, opened, frame)
        while True:
            parts = await opened.receive()
            for chunk in writer.write(parts):
                await self._websocket.send(chunk.decode())
            if parts and type(parts[-1]) is Finish:
                return

    async def _send_error(self, name: str | int | None, error: CodedError) -> None:
        await self._send({"type": "error", "id": name, "error": problem_of(error).error})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send(_encode(message).decode())


def _end(
    name: str | int, request: RunningRequest, failure: CodedError | None, route: dict[str, Any]
) -> dict[str, Any]:
    """The last message of a request; it says who was asked, and over which path, if anybody was."""
    end: dict[str, Any] = {"type": "done", "id": name}
    if failure is not None:
        end = {"type": "error", "id": name, "error": problem_of(failure).error}
    elif request.scope.cancelled_caught:
        end["type"] = "cancelled"
    return {**end, "aimo": route} if route else end
