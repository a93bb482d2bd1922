"""An ASGI server of one request, in memory, for the edge's application."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from aimo_node.edge.app import create_app
from aimo_node.edge.asgi import EdgeApp
from aimo_node.edge.settings import EdgeSettings
from aimo_node.testing.fake_door import FakeDoor

HOST = (b"host", b"127.0.0.1:8000")
JSON = (b"content-type", b"application/json")
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


class AsgiCall:
    """One HTTP request as an ASGI server makes it; `leave` is the consumer hanging up.

    Attributes:
        stalled_from: the number of the `send` that blocks, as for a consumer that does not read.
    """

    def __init__(
        self,
        app: Any,
        method: str = "GET",
        path: str = "/",
        body: Any = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        client: str = "127.0.0.1",
    ) -> None:
        self.app = app
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        content_type = () if any(name == b"content-type" for name, _ in headers) else (JSON,)
        host = () if any(name == b"host" for name, _ in headers) else (HOST,)
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*host, *(content_type if method == "POST" else ()), *headers],
            "client": (client, 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
            "extensions": {},
        }
        self.messages: list[dict[str, Any]] = []
        self.stalled_from = 1_000_000
        self.stalled = trio.Event()
        self._left = trio.Event()
        self._requests = [
            {"type": "http.request", "body": data, "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
        ]

    def leave(self) -> None:
        """The consumer hangs up."""
        self._left.set()

    async def run(self) -> AsgiCall:
        """Serve the request to its end."""
        await self.app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        if self._requests:
            await trio.lowlevel.checkpoint()
            return self._requests.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if len(self.messages) >= self.stalled_from:
            self.stalled.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.messages.append(message)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_complete(self) -> bool:
        return not self.messages[-1].get("more_body", True)


@pytest.fixture
def door() -> FakeDoor:
    return FakeDoor()


@pytest.fixture
def settings() -> EdgeSettings:
    return EdgeSettings()


@pytest.fixture
def app(door: FakeDoor, settings: EdgeSettings) -> EdgeApp:
    return create_app(door, settings, now=lambda: 1_700_000_000)


@pytest.fixture
def ask(app: EdgeApp):
    """Make a call to the application: ``ask("POST", "/v1/…", {...})``; run it yourself."""

    def make(method: str = "GET", path: str = "/", body: Any = None, **more: Any) -> AsgiCall:
        return AsgiCall(app, method, path, body, **more)

    return make


@pytest.fixture
def ask_chat(ask):
    """A chat request with these fields besides model and message."""

    def make(**fields: Any) -> AsgiCall:
        return ask("POST", "/v1/chat/completions", {**CHAT, **fields})

    return make
