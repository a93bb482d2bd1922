"""What a parser and a stream may ask of the connection they belong to, and what a connection waits
for."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Protocol

from aimo_node.edge.serving.inbox import Inbox
from aimo_node.edge.serving.transport import Transport


class Phase(enum.Enum):
    """What a connection waits for, and hence how long."""

    FRESH = enum.auto()  # the first byte, after the TLS handshake if there is one
    IDLE = enum.auto()  # the first byte of another request
    HEAD = enum.auto()  # the rest of a request's head
    BODY = enum.auto()  # the rest of a request's body
    ANSWER = enum.auto()  # the application; writes have a limit of their own
    WEBSOCKET = enum.auto()  # a frame, if only a pong
    LINGER = enum.auto()  # the consumer's end of the connection


class ConnectionOwner(Protocol):
    """One consumer's connection as its parser and its streams see it.

    Attributes:
        transport: its socket.
        inbox: of the request that runs.
        deadline: when `expire` is due, by `trio.current_time`.
        is_held: whether reading is suspended.
        client, server: host and port of either end.
    """

    transport: Transport
    inbox: Inbox | None
    phase: Phase
    deadline: float
    client: tuple[str, int]
    server: tuple[str, int]
    is_tls: bool

    @property
    def is_held(self) -> bool: ...

    def enter(self, phase: Phase) -> None:
        """Begins to wait for something else; the time for it begins now."""

    def finish(self) -> None:
        """Nothing more will be sent; closes once the consumer has read it or has had its time."""

    def abort(self) -> None:
        """Closes at once; the reader notices and ends the requests."""

    def hold(self) -> None:
        """Stops reading until `resume`: something is full."""

    def resume(self) -> None:
        """Goes on reading. Idempotent."""

    def charge(self, held_bytes: int) -> bool:
        """Sets how much of a body or message is held; False when all connections together hold too
        much."""

    def spawn(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Starts a task that ends with the connection at the latest."""

    def expire(self) -> None:
        """The deadline has passed: says so where a request has begun, and closes."""

    def close_if_idle(self) -> None:
        """Closes a kept connection that has no request; one that never had any may be about to send
        its first."""

    def say_goodbye(self) -> None:
        """The server ends while a request still runs: tells a WebSocket, which has a word for
        it."""
