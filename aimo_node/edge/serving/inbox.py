"""What an application receives during one request: pieces of the body or WebSocket messages, then
the disconnect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

MESSAGES_MAX = 16
"""Unread messages before the connection stops reading: 1 MiB of a body (64 KiB each)."""

Message = dict[str, Any]


class Inbox:
    """One request's messages. The reader task puts, one application task receives.

    A memory channel does the same for three times the price, once per request.
    """

    __slots__ = ("_last_message", "_messages", "_on_room", "_receiver")

    def __init__(self, on_room: Callable[[], None]) -> None:
        """`on_room` is called when a full inbox is no longer full."""
        self._messages: deque[Message] = deque()
        self._receiver: Task | None = None
        self._last_message: Message | None = None
        self._on_room = on_room

    @property
    def is_full(self) -> bool:
        """Whether the reader has to wait for `on_room`."""
        return len(self._messages) >= MESSAGES_MAX

    def put_nowait(self, message: Message) -> None:
        """Hands over a message, or queues it. After `close` it is dropped."""
        if self._last_message is not None:
            return
        self._messages.append(message)
        self._wake()

    async def put(self, message: Message) -> None:
        """`put_nowait` for Hypercorn's streams; it does not wait."""
        self.put_nowait(message)

    def close(self, last_message: Message) -> None:
        """No more messages come: whoever receives from now on gets the last one, again and again.
        Idempotent."""
        if self._last_message is None:
            self._last_message = last_message
            self._wake()

    async def receive(self) -> Message:
        """The next message. Not a checkpoint when one is there already."""
        while not self._messages:
            if self._last_message is not None:
                await checkpoint()
                return self._last_message
            await self._wait()
        was_full = self.is_full
        message = self._messages.popleft()
        if was_full:
            self._on_room()
        return message

    async def _wait(self) -> None:
        if self._receiver is not None:
            raise trio.BusyResourceError("another task is receiving already")
        self._receiver = current_task()

        def abort(_raise_cancel: object) -> Abort:
            self._receiver = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _wake(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            reschedule(receiver)
