"""What the OpenAI dialect needs from HTTP: one request, its status, its body as it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeAlias

import trio

from aimo_node.errors import EngineFailed

ANSWER_BYTES_MAX: Final = 16 << 20
"""A whole answer in one piece; twice the largest request."""

REFUSAL_BYTES_MAX: Final = 65_536
"""An error page longer than this tells nobody anything."""

GOODBYE_SECONDS: Final = 0.2
"""How long the end of a body may lag behind the last event for the connection to be kept."""

Headers: TypeAlias = Sequence[tuple[str, str]]

Heed: TypeAlias = Callable[[int, Mapping[str, str]], None]
"""Told status and headers of every answer, the names in lower case."""

Feed: TypeAlias = Callable[[bytes], bool]
"""Takes some body; False means no more for now."""


class Unreachable(EngineFailed):
    """No connection came about, so nothing was sent.

    Args:
        message: for consumers.
        reason: for the owner, such as ``connection refused``.
        lasting: waiting will not help.
    """

    def __init__(self, message: str, reason: str = "", *, lasting: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.lasting = lasting


class AnswerTooLong(EngineFailed):
    """More came than there is room for."""


class Reply(Protocol):
    """The answer to one HTTP request, read by one task inside its context."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""

    async def receive(self) -> bytes:
        """The next bytes of the body as they arrived; empty at its end.

        Raises:
            EngineFailed: the connection was lost, or what comes is not HTTP.
        """

    async def pour(self, feed: Feed) -> bool:
        """Call `feed` with the body as it arrives until it returns False; cheaper than `receive`.

        Args:
            feed: must not block, may be called from another task; what it raises is raised here.

        Returns:
            False once the body is over, True if `feed` wanted no more before.

        Raises:
            EngineFailed: as `receive`.
        """


class Upstream(Protocol):
    """A server that speaks HTTP."""

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AbstractAsyncContextManager[Reply]:
        """Ask; inside the context the reply can be read. Leaving it early closes the socket.

        Args:
            path: below the server's own root, such as ``/v1/models``.
            body: JSON.
            headers: of this request alone, names in lower case; they win over the upstream's own.

        Raises:
            EngineFailed: nobody there, or not HTTP.
        """

    async def aclose(self) -> None:
        """Close idle connections."""


def wall_clock() -> float:
    """Seconds since 1970, for headers that give a date."""
    return time.time_ns() / 1e9


async def pour_received(reply: Reply, feed: Feed) -> bool:
    """`Reply.pour` for a reply that has nothing better than `receive`."""
    while data := await reply.receive():
        if not feed(data):
            return True
    return False


async def read_all(reply: Reply, bytes_max: int = ANSWER_BYTES_MAX) -> bytes:
    """The whole body.

    Raises:
        AnswerTooLong: it is longer than `bytes_max`.
        EngineFailed: the connection was lost.
    """
    pieces: list[bytes] = []
    left = bytes_max
    while data := await reply.receive():
        left -= len(data)
        if left < 0:
            raise AnswerTooLong(f"the engine's answer is longer than {bytes_max} bytes")
        pieces.append(data)
    return b"".join(pieces)


async def say_goodbye(reply: Reply) -> None:
    """Read on to the end of the body, if it is near, so that the connection can be used again."""
    with trio.move_on_after(GOODBYE_SECONDS):
        try:
            await reply.receive()
        except EngineFailed:
            return  # the answer is complete; how the connection ends does not matter


async def ask_once(
    upstream: Upstream,
    path: str,
    body: bytes = b"",
    *,
    timeout_seconds: float = 10,
    headers: Headers = (),
) -> tuple[int, bytes]:
    """Status and whole body of one short request: POST if there is a `body`, else GET.

    Raises:
        EngineFailed: no complete answer within `timeout_seconds`.
    """
    method = "POST" if body else "GET"
    try:
        with trio.fail_after(timeout_seconds):
            async with upstream.request(method, path, body, headers) as reply:
                return reply.status, await read_all(reply)
    except trio.TooSlowError as error:
        raise EngineFailed(f"no answer to {path} within {timeout_seconds:g} s") from error
