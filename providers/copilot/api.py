"""Copilot's API as an upstream: adds the token to each request, and replaces it once on 401."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import trio

from aimo_node.errors import EngineFailed
from providers.copilot.github import Connect
from providers.copilot.headers import Editor, copilot_headers
from providers.copilot.refusal import read_object, words_of
from providers.copilot.tokens import CopilotToken, TokenKeeper
from providers.http.upstream import REFUSAL_BYTES_MAX, Headers, Reply, Upstream, read_all

ROOTS_MAX: Final = 4
"""Addresses of the API that are kept open; GitHub moves an account once in a blue moon."""

REFUSAL_SECONDS: Final = 5.0


class CopilotApi:
    """See `Upstream`. Any number of tasks may ask at the same time.

    Args:
        connect: makes the client of one address.
        requests_max: at a time.
    """

    def __init__(
        self, keeper: TokenKeeper, editor: Editor, *, connect: Connect, requests_max: int
    ) -> None:
        self._keeper = keeper
        self._editor = editor
        self._connect = connect
        self._requests_max = requests_max
        self._upstreams: dict[str, Upstream] = {}

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator[Reply]:
        """See `Upstream`; a token that is not taken is replaced once, before anything is read."""
        async with contextlib.AsyncExitStack() as stack:

            async def send(token: CopilotToken) -> Reply:
                own = copilot_headers(self._editor, token.value)
                upstream = await self._upstream(token.root)
                return await stack.enter_async_context(
                    upstream.request(method, path, body, (*own, *headers))
                )

            token = await self._keeper.token()
            reply = await send(token)
            if reply.status == 401:
                await stack.aclose()
                token = await self._keeper.replacement(token)
                reply = await send(token)
            if reply.status == 401:
                self._keeper.distrust(token)
            else:
                self._keeper.trust()
            if reply.status in {402, 403}:
                raise _refusal(reply.status, await _words(reply, token))
            yield reply

    async def aclose(self) -> None:
        """See `Upstream`."""
        for upstream in self._upstreams.values():
            await upstream.aclose()

    async def _upstream(self, root: str) -> Upstream:
        found = self._upstreams.get(root)
        if found is None:
            found = self._upstreams[root] = self._connect(root, self._requests_max)
            if len(self._upstreams) > ROOTS_MAX:
                await self._upstreams.pop(next(iter(self._upstreams))).aclose()
        return found


async def _words(reply: Reply, token: CopilotToken) -> str:
    """What GitHub says to people in a refusal; empty if it says nothing in time."""
    body = b""
    with trio.move_on_after(REFUSAL_SECONDS):
        body = await read_all(reply, REFUSAL_BYTES_MAX)
    return words_of(read_object(body), token.value)


def _refusal(status: int, words: str) -> EngineFailed:
    because = f" (GitHub says: {words})" if words else ""
    if status == 402:
        return EngineFailed(
            "the owner's Copilot quota is used up: `aimo check-usage` shows when it is renewed"
            + because
        )
    return EngineFailed(f"Copilot does not let its owner do this{because}")
