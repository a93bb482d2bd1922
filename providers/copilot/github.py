"""Asks one GitHub: the device flow's two questions, Copilot's token, the owner's usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
import trio

from aimo_node.errors import EngineFailed
from providers.copilot.device_flow import (
    DEVICE_GRANT,
    SCOPE,
    DeviceCode,
    DeviceFlow,
    GaveUp,
    LoggedIn,
    Poll,
    Wait,
    read_device_code,
)
from providers.copilot.headers import Editor, github_headers
from providers.copilot.refusal import CopilotError, read_object, words_of
from providers.copilot.sites import Site, copilot_root
from providers.copilot.tokens import CopilotToken, read_token
from providers.http.upstream import Headers, Upstream, ask_once

ASK_SECONDS: Final = 20.0
CONNECTIONS_MAX: Final = 4
"""Logins and refreshes ask one thing after the other."""

Connect: TypeAlias = Callable[[str, int], Upstream]
"""Makes a client of the server with this root, for so many requests at a time."""


def connect(root: str, requests_max: int) -> Upstream:
    """A client of GitHub or of Copilot."""
    # Half a tenth of a second to load, and a process may have no use for it.
    from providers.http.client import HttpUpstream  # noqa: PLC0415

    return HttpUpstream(root, requests_max=requests_max)


class GitHub:
    """One GitHub. An async context manager that closes its connections.

    Args:
        connect: makes the clients; tests have their own.
    """

    def __init__(
        self, site: Site, *, editor: Editor | None = None, connect: Connect = connect
    ) -> None:
        self.site = site
        self._editor = editor or Editor()
        self._web = connect(site.web, CONNECTIONS_MAX)
        self._api = self._web if site.api == site.web else connect(site.api, CONNECTIONS_MAX)

    async def __aenter__(self) -> GitHub:
        """Nothing is opened before it is needed."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close what is open."""
        with trio.move_on_after(1) as scope:
            scope.shield = True
            await self._web.aclose()
            await self._api.aclose()

    async def device_code(self, client_id: str) -> DeviceCode:
        """Begin a login.

        Raises:
            CopilotError: GitHub refuses or cannot be reached.
        """
        asked = {"client_id": client_id, "scope": SCOPE}
        status, answer = await self._post("/login/device/code", asked)
        return read_device_code(status, answer, self.site)

    async def wait_for_login(self, flow: DeviceFlow, client_id: str) -> str:
        """Ask again and again until the person is through; GitHub's token.

        Raises:
            CopilotError: they said no, the code has expired, or GitHub refuses.
        """
        action = flow.begin(trio.current_time())
        while True:
            match action:
                case Wait():
                    await trio.sleep(action.seconds)
                    action = flow.waited(trio.current_time())
                case Poll():
                    action = await self._poll(flow, client_id)
                case LoggedIn():
                    return action.github_token
                case GaveUp():
                    raise CopilotError(action.message, final=True)

    async def copilot_token(self, github_token: str) -> CopilotToken:
        """Exchange GitHub's token for Copilot's.

        Raises:
            CopilotError: the login is no longer good, there is no subscription, GitHub is away.
        """
        status, answer = await self._get("/copilot_internal/v2/token", github_token)
        if status != 200:
            raise _refusal(status, answer, github_token)
        root = copilot_root(self.site, _mapping((answer or {}).get("endpoints")).get("api"))
        return read_token(answer or {}, root)

    async def user(self, github_token: str) -> Mapping[str, Any]:
        """What GitHub says about the owner's Copilot.

        Raises:
            CopilotError: as `copilot_token`.
        """
        status, answer = await self._get("/copilot_internal/user", github_token)
        if status != 200 or answer is None:
            raise _refusal(status, answer, github_token)
        return answer

    async def _poll(self, flow: DeviceFlow, client_id: str) -> Wait | Poll | LoggedIn | GaveUp:
        asked = {
            "client_id": client_id,
            "device_code": flow.code.device_code,
            "grant_type": DEVICE_GRANT,
        }
        try:
            status, answer = await self._post("/login/oauth/access_token", asked)
        except CopilotError:
            return flow.unanswered(trio.current_time())
        return flow.answered(status, answer, trio.current_time())

    async def _post(
        self, path: str, fields: Mapping[str, str]
    ) -> tuple[int, Mapping[str, Any] | None]:
        body = msgspec.json.encode(fields)
        return await self._ask(self._web, path, body, (("accept", "application/json"),))

    async def _get(self, path: str, github_token: str) -> tuple[int, Mapping[str, Any] | None]:
        headers = github_headers(self._editor, github_token)
        return await self._ask(self._api, path, b"", headers)

    async def _ask(
        self, upstream: Upstream, path: str, body: bytes, headers: Headers
    ) -> tuple[int, Mapping[str, Any] | None]:
        try:
            status, answer = await ask_once(
                upstream, path, body, timeout_seconds=ASK_SECONDS, headers=headers
            )
        except EngineFailed as error:
            reason = error.message.removeprefix("the engine's upstream ")
            raise CopilotError(f"GitHub ({self.site.web}) {reason}") from error
        return status, read_object(answer)


def _refusal(status: int, answer: Mapping[str, Any] | None, github_token: str) -> CopilotError:
    said = words_of(answer, github_token)
    because = f" (GitHub says: {said})" if said else ""
    match status:
        case 401:
            sentence = "GitHub no longer accepts the login: run `aimo auth copilot` again"
        case 402 | 403 if "rate limit" not in said.lower():
            sentence = "this GitHub account has no Copilot subscription that may be used here"
        case 404:
            sentence = "this GitHub knows of no Copilot for the account: is it the right one?"
        case 200:
            return CopilotError("GitHub's answer is not JSON: is a proxy in between?")
        case _:
            return CopilotError(f"GitHub answers with HTTP status {status}{because}")
    return CopilotError(f"{sentence}{because}", final=True)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
