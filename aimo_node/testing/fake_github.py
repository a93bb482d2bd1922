"""A GitHub on loopback: the device flow, Copilot's token, usage, models and chat, with faults.

Every part of GitHub lives at one address. What it was asked is kept, and what it answers next can
be put in line, so that each refusal of the real one is one line of a test.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final

import trio

from aimo_node.testing.upstream import Received, Script, StandInUpstream, Step, Whole
from aimo_node.testing.upstream_scripts import answer

CLIENT_ID: Final = "Iv1.b507a08c87ecfe98"
GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
USER_CODE: Final = "WDJB-MJHT"

MODELS: Final = (
    {
        "id": "gpt-test",
        "object": "model",
        "vendor": "OpenAI",
        "policy": {"state": "enabled"},
        "capabilities": {
            "type": "chat",
            "family": "gpt-test",
            "limits": {
                "max_context_window_tokens": 128_000,
                "max_prompt_tokens": 64_000,
                "max_output_tokens": 16_000,
            },
            "supports": {"tool_calls": True, "vision": True, "streaming": True},
        },
        "supported_endpoints": ["/chat/completions", "/responses"],
    },
    {
        "id": "claude-test",
        "capabilities": {
            "type": "chat",
            "limits": {"max_context_window_tokens": 90_000},
            "supports": {"tool_calls": True, "structured_outputs": True},
        },
    },
    {"id": "embedding-test", "capabilities": {"type": "embeddings"}},
    {"id": "completion-test", "capabilities": {"type": "completion"}},
    {
        "id": "responses-test",
        "capabilities": {"type": "chat"},
        "supported_endpoints": ["/responses"],
    },
    {
        "id": "forbidden-test",
        "capabilities": {"type": "chat"},
        "policy": {"state": "disabled"},
    },
)
"""Two can chat here; each of the others must not be offered."""

USAGE: Final[Mapping[str, Any]] = {
    "login": "octocat",
    "copilot_plan": "individual_pro",
    "quota_reset_date": "2026-12-01",
    "quota_snapshots": {
        "chat": {"unlimited": True, "entitlement": 0, "remaining": 0, "percent_remaining": 100},
        "premium_interactions": {
            "unlimited": False,
            "entitlement": 300,
            "remaining": 120,
            "percent_remaining": 40.0,
            "overage_count": 0,
        },
    },
}


class FakeGitHub(StandInUpstream):
    """Serves until its nursery is cancelled; made by `fake_github`.

    Attributes:
        interval, expires_in: of the next device code, in seconds.
        code_answers: in place of the next device codes.
        poll_answers: of the next polls; then the login succeeds.
        token_answers: in place of the next tokens of Copilot.
        token_seconds, refresh_seconds: how long a token lives, and when to replace it.
        announced_api: Copilot's address as told with the token; empty tells none.
        catalogue: what ``GET /models`` lists.
        usage: what is told of plan and quotas.
        github_tokens: of logins that are still good.
        copilot_tokens: every one given, in order.
        asked: every request, in order; `received` holds the chat requests alone.
    """

    def __init__(self, endpoint: str, usual: Script) -> None:
        super().__init__(endpoint, usual)
        self.interval: float = 0
        self.expires_in: float = 900
        self.code_answers: deque[Whole] = deque()
        self.poll_answers: deque[Whole] = deque()
        self.token_answers: deque[Whole] = deque()
        self.token_seconds: float = 1800
        self.refresh_seconds: float = 1500
        self.announced_api = endpoint
        self.catalogue: Iterable[Mapping[str, Any]] = MODELS
        self.usage: Mapping[str, Any] = USAGE
        self.github_tokens: list[str] = []
        self.copilot_tokens: list[str] = []
        self.asked: list[Received] = []
        self._valid: set[str] = set()
        self._device_codes: set[str] = set()

    def grant_login(self) -> str:
        """A login without the device flow; GitHub's token."""
        token = f"ghu_secret{len(self.github_tokens)}"
        self.github_tokens.append(token)
        return token

    def revoke_tokens(self) -> None:
        """Every token of Copilot given so far is refused from now on."""
        self._valid.clear()

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [received.path for received in self.asked]

    def _script_for(self, received: Received) -> Script:
        self.asked.append(received)
        match received.path:
            case "/login/device/code":
                return _once(self._device_code(received))
            case "/login/oauth/access_token":
                return _once(self._poll(received))
            case "/copilot_internal/v2/token":
                return _once(self._copilot_token(received))
            case "/copilot_internal/user":
                good = self._knows(received, "token ", self.github_tokens)
                return _once(_json(self.usage) if good else _BAD_CREDENTIALS)
            case "/models" | "/chat/completions":
                return self._copilot(received)
        return _once(Whole(404, b'{"message": "Not Found"}'))

    def _device_code(self, received: Received) -> Whole:
        if self.code_answers:
            return self.code_answers.popleft()
        if not received.body.get("client_id"):
            return Whole(404, b'{"error": "Not Found"}')
        code = f"device-secret{len(self._device_codes)}"
        self._device_codes.add(code)
        told = {
            "device_code": code,
            "user_code": USER_CODE,
            "verification_uri": f"{self.endpoint}/login/device",
            "expires_in": self.expires_in,
            "interval": self.interval,
        }
        return _json(told)

    def _poll(self, received: Received) -> Whole:
        if self.poll_answers:
            return self.poll_answers.popleft()
        if received.body.get("grant_type") != GRANT:
            return oauth_error("unsupported_grant_type")
        if received.body.get("device_code") not in self._device_codes:
            return oauth_error("incorrect_device_code")
        login = {"access_token": self.grant_login(), "token_type": "bearer", "scope": "read:user"}
        return _json(login)

    def _copilot_token(self, received: Received) -> Whole:
        if self.token_answers:
            return self.token_answers.popleft()
        if not self._knows(received, "token ", self.github_tokens):
            return _BAD_CREDENTIALS
        token = f"tid=secret{len(self.copilot_tokens)};exp=1:mac"
        self.copilot_tokens.append(token)
        self._valid.add(token)
        endpoints = {"endpoints": {"api": self.announced_api}} if self.announced_api else {}
        told = {
            "token": token,
            "expires_at": int(time.time_ns() / 1e9 + self.token_seconds),
            "refresh_in": self.refresh_seconds,
        }
        return _json(told | endpoints)

    def _copilot(self, received: Received) -> Script:
        missing = [name for name in _EDITOR_HEADERS if not received.headers.get(name)]
        if missing:
            said = f"bad request: missing {missing[0]} header for IDE auth"
            return _once(Whole(400, json.dumps({"error": {"message": said}}).encode()))
        if not self._knows(received, "Bearer ", self._valid):
            # As the real one: plain text.
            return _once(Whole(401, b"unauthorized: token expired\n", _PLAIN))
        if received.path == "/models":
            return _once(_json({"object": "list", "data": list(self.catalogue)}))
        self.received.append(received)
        return self.scripts.popleft() if self.scripts else self.usual

    @staticmethod
    def _knows(received: Received, scheme: str, tokens: Iterable[str]) -> bool:
        given = received.headers.get("authorization", "")
        return given.startswith(scheme) and given.removeprefix(scheme) in tokens


def oauth_error(code: str, **more: object) -> Whole:
    """A refusal of the device flow; GitHub sends them with status 200."""
    return _json({"error": code, "error_description": f"the reason for {code}", **more})


NO_SUBSCRIPTION: Final = Whole(
    403,
    json.dumps(
        {
            "can_signup_for_limited": False,
            "error_details": {
                "message": "Contact Support. You are currently logged in as octocat.",
                "title": "Contact Support",
            },
            "message": "Resource not accessible by integration",
        }
    ).encode(),
)
NO_COPILOT: Final = Whole(404, b'{"message": "Not Found"}')
UNAVAILABLE: Final = Whole(503, b"<html>Unicorn!</html>", {"content-type": "text/html"})
NO_QUOTA: Final = Whole(
    402, b'{"error": {"message": "You have no quota", "code": "quota_exceeded"}}'
)


@contextlib.asynccontextmanager
async def fake_github(usual: Script | None = None) -> AsyncIterator[FakeGitHub]:
    """A running fake on a free loopback port.

    Args:
        usual: how Copilot answers chat requests where no other script waits.
    """
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    github = FakeGitHub(endpoint, usual or answer())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, github.serve_connection, [listener])
        try:
            yield github
        finally:
            nursery.cancel_scope.cancel()


_EDITOR_HEADERS: Final = ("editor-version", "editor-plugin-version", "copilot-integration-id")
_PLAIN: Final = {"content-type": "text/plain; charset=utf-8"}
_BAD_CREDENTIALS: Final = Whole(401, b'{"message": "Bad credentials", "status": "401"}')


def _json(value: Mapping[str, Any]) -> Whole:
    return Whole(200, json.dumps(value).encode())


def _once(whole: Whole) -> Script:
    def script(_body: Mapping[str, Any]) -> Iterator[Step]:
        yield whole

    return script
