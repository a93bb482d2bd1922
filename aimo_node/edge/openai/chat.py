"""``POST /v1/chat/completions``: read the request, open it, stream or gather the answer."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from quart import Response

from aimo_node.dispatch.inference import InferenceRequest
from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, PeerId
from aimo_node.edge.asgi import EVENTS
from aimo_node.edge.event_stream import EventStream
from aimo_node.edge.inference import Desk, OpenAnswer, cut_short, out_of_order
from aimo_node.edge.json_body import check, encode_object
from aimo_node.edge.openai.chunks import EVENT, ChunkWriter, Frame, SseRenderer
from aimo_node.edge.openai.schemas import ChatRequest
from aimo_node.edge.openai.whole import Completion
from aimo_node.edge.problem import problem_of, respond_with
from aimo_node.errors import CodedError

Scope: TypeAlias = MutableMapping[str, Any]

EVENT_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx gathers a proxied response unless told not to
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A validated Chat Completions request.

    Attributes:
        body: canonical JSON of all the consumer sent.
        choices_max: how many answers it asked for.
    """

    model: str
    body: bytes
    stream: bool
    include_usage: bool
    choices_max: int

    def request(
        self, deadline_seconds: float, consumer: str, provider: PeerId | None = None
    ) -> InferenceRequest:
        """What the dispatcher is asked."""
        return InferenceRequest(
            Endpoint.CHAT, self.model, self.body, self.stream, deadline_seconds, consumer, provider
        )


def read_call(value: dict[str, Any], prefix: str = "") -> ChatCall:
    """Validate a Chat Completions object.

    Args:
        prefix: where it stands in what the consumer sent, such as ``body``.

    Raises:
        InvalidRequest: a field does not fit; ``param`` names it.
        InvalidMessageFormat: it holds what JSON cannot carry on.
    """
    chat = check(value, ChatRequest, prefix)
    options = chat.stream_options
    return ChatCall(
        chat.model,
        encode_object(value),
        bool(chat.stream),
        options is not None and bool(options.include_usage),
        chat.n or 1,
    )


class ChatDesk:
    """Answers Chat Completions requests over HTTP.

    Args:
        wall_clock: seconds since the epoch, for ``created``.
    """

    def __init__(self, desk: Desk, wall_clock: Callable[[], int]) -> None:
        self.desk = desk
        self._wall_clock = wall_clock

    def admit(self, call: ChatCall, consumer: str, provider: PeerId | None = None) -> OpenAnswer:
        """Take a request; the caller closes what it gets.

        Raises:
            Draining: the node goes away.
        """
        settings = self.desk.settings
        return self.desk.admit(
            call.request(settings.request_deadline_seconds, consumer, provider),
            silence_seconds=settings.comment_seconds if call.stream else None,
        )

    async def respond(
        self, scope: Scope, call: ChatCall, consumer: str, provider: PeerId | None = None
    ) -> Response:
        """The response to a request; its connection closes a stream it is left with in `scope`.

        Raises:
            Draining: the node goes away.
        """
        opened = self.admit(call, consumer, provider)
        try:
            if call.stream:
                return await self._respond_with_events(scope, call, opened)
            body = await self._gather_in_grace(call, opened)
            opened.succeed()
        except CodedError as error:
            opened.fail(error)
            return respond_with(problem_of(error), opened.headers)
        except Exception:
            opened.fail(out_of_order("while answering"))
            raise
        except BaseException:  # the consumer left
            opened.close()
            raise
        return Response(body, headers=opened.headers, content_type="application/json")

    async def _respond_with_events(
        self, scope: Scope, call: ChatCall, opened: OpenAnswer
    ) -> Response:
        running = self.desk.running
        cut = running.enter()
        try:
            with cut:
                await opened.start()
                await opened.hold(self.desk.settings.header_hold_seconds)
        finally:
            running.leave(cut)
        if cut.cancelled_caught:
            raise cut_short()
        renderer = SseRenderer(self.writer(call, opened))
        scope[EVENTS] = events = EventStream(opened, renderer, running)
        return Response(events, headers={**EVENT_HEADERS, **opened.headers})

    async def _gather_in_grace(self, call: ChatCall, opened: OpenAnswer) -> bytes:
        running = self.desk.running
        cut = running.enter()
        try:
            with cut:
                await opened.start()
                return await self.gather(call, opened)
        finally:
            running.leave(cut)
        raise cut_short()

    async def gather(self, call: ChatCall, opened: OpenAnswer) -> bytes:
        """The whole answer as a ``chat.completion`` object.

        Raises:
            CodedError: the request failed, or what came is no answer.
        """
        completion = Completion(
            choices_max=call.choices_max, bytes_max=self.desk.settings.answer_bytes_max
        )
        while True:
            for part in await opened.receive():
                if isinstance(part, Finish):
                    answer = opened.answer
                    now = self._wall_clock()
                    return completion.write(answer.request_id, answer.model, now, part)
                completion.add(part)

    def writer(self, call: ChatCall, opened: OpenAnswer, frame: Frame = EVENT) -> ChunkWriter:
        """A writer for the answer's chunks, each in a frame."""
        answer = opened.answer
        return ChunkWriter(
            answer.request_id,
            answer.model,
            self._wall_clock(),
            choices_max=call.choices_max,
            include_usage=call.include_usage,
            frame=frame,
        )
