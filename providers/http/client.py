"""HTTP to servers elsewhere, by httpx2: connection pool, TLS, and our own limit around it.

Everything httpx2 raises becomes an `EngineFailed` here. Redirects are not followed, proxies and
credentials from the environment are not used: prompts go where the owner said and nowhere else.
The transport is asked directly: httpx2's client around it costs a fifth more per request, and would
carry cookies from one consumer's request to another's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final, cast

import httpx2
import trio

from aimo_node.errors import ConfigError, EngineFailed
from providers.http.upstream import Feed, Headers, Unreachable, pour_received

CONNECT_SECONDS: Final = 10.0
CONNECT_RETRIES: Final = 2
"""Only connecting is tried again: a request that has been sent may have been carried out."""

SILENCE_SECONDS: Final = 300.0
"""How long an upstream may say nothing: a long prompt on a slow machine takes minutes."""

KEEP_ALIVE_SECONDS: Final = 3.0
"""Below the five seconds after which common servers close idle connections from their side."""

PROBES_MAX: Final = 8
"""Connections beside those of requests: health probes and token counts."""


URLS_KEPT_MAX: Final = 64


class HttpUpstream:
    """A server by URL. Any number of tasks may ask at the same time.

    Args:
        root: scheme, host and port, such as ``https://api.example.com``.
        requests_max: connections at a time; more wait. The pool itself has no limit, since it
            loses places when a request is cancelled in the wrong moment.
        api_key: sent as bearer token; never part of a message.
        headers: sent with every request, names in lower case; for services that want their key
            or a version elsewhere than in a bearer token.
        ca_file: certificates to trust in place of the usual ones.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        root: str,
        *,
        requests_max: int,
        api_key: str = "",
        headers: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._transport = httpx2.AsyncHTTPTransport(
            verify=_trust(ca_file),
            limits=httpx2.Limits(
                max_connections=None,
                max_keepalive_connections=requests_max,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
            trust_env=False,
            retries=CONNECT_RETRIES,
        )
        self._headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "aimo-node"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._headers.update(headers or {})
        self._root = root
        self._urls: dict[str, httpx2.URL] = {}
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None)
        self._extensions = {"timeout": timeout.as_dict()}
        self._limiter = trio.CapacityLimiter(requests_max + PROBES_MAX)

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator[HttpReply]:
        """See `Upstream`."""
        sent = self._headers.copy()
        if body:
            sent["content-type"] = "application/json"
        sent.update(headers)
        request = httpx2.Request(
            method,
            self._url(path),
            headers=sent,
            content=body or None,
            extensions=self._extensions,
        )
        async with self._limiter:
            try:
                response = await self._transport.handle_async_request(request)
            except httpx2.HTTPError as error:
                raise _failure(error) from error
            reply = HttpReply(response)
            try:
                yield reply
            finally:
                # Closing a socket takes no time; the shield lets it happen on cancellation too.
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await reply.aclose()

    async def aclose(self) -> None:
        """See `Upstream`."""
        await self._transport.aclose()

    def _url(self, path: str) -> httpx2.URL:
        """Taking a URL apart costs as much as the rest of a request; there are a handful."""
        found = self._urls.get(path)
        if found is None:
            found = httpx2.URL(self._root + path)
            if len(self._urls) < URLS_KEPT_MAX:
                self._urls[path] = found
        return found


class HttpReply:
    """See `Reply`."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = {
            name.decode("ascii").lower(): value.decode("latin-1")
            for name, value in response.headers.raw
        }
        self._response = response
        self._pieces = aiter(cast("httpx2.AsyncByteStream", response.stream))

    async def receive(self) -> bytes:
        """See `Reply`."""
        try:
            return await anext(self._pieces, b"")
        except httpx2.HTTPError as error:
            raise _failure(error) from error

    async def pour(self, feed: Feed) -> bool:
        """See `Reply`."""
        return await pour_received(self, feed)

    async def aclose(self) -> None:
        """Close the connection unless the answer was read to its end."""
        await self._response.aclose()
        # One of httpx2's generators is left to the garbage collector when a body is not read to
        # its end, even if the outer one is closed: so read on until the closed connection fails.
        with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError):
            async for _ in self._pieces:
                pass


def _trust(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ca-file {ca_file} holds no usable certificates: {error}") from error


def _failure(error: httpx2.HTTPError) -> EngineFailed:
    """What went wrong, without the upstream's address: consumers read this."""
    match error:
        case httpx2.ConnectError() if any(isinstance(one, ssl.SSLError) for one in _causes(error)):
            reason = "no certificate this node trusts"
            return Unreachable(f"the engine's upstream has {reason}", reason, lasting=True)
        case httpx2.ConnectError():
            return Unreachable("the engine's upstream cannot be reached", _reason(error))
        case httpx2.ConnectTimeout():
            return Unreachable("the engine's upstream cannot be reached", "it does not answer")
        case httpx2.TimeoutException():
            return EngineFailed("the engine's upstream was silent for too long")
        case _:
            return EngineFailed("the engine's upstream broke off the connection")


def _reason(error: httpx2.ConnectError) -> str:
    """What the system says, such as ``connection refused``."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return "there is no such host"
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno).lower()
    return "no connection"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it; httpx2 and trio each wrap what they catch."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__
