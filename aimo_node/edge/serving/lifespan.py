"""The application's start-up and shutdown hooks (ASGI lifespan).

Hypercorn serves on when start-up fails, and without telling anyone who does not read its log. Here
it is an error.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio

from aimo_node.edge.serving.hypercorn_parts import Application
from aimo_node.errors import StartError

STARTUP_SECONDS = 60.0
"""An application that is not up by then will not be; whoever started us waits."""

log = structlog.get_logger(__name__)


class Lifespan:
    """Runs one application's lifespan: `run` as a task, then `start`, in the end `stop`."""

    def __init__(self, app: Application) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._to_app, self._from_us = trio.open_memory_channel[dict[str, Any]](2)
        self._started = trio.Event()
        self._stopped = trio.Event()
        self._failure: str | None = None

    async def run(self) -> None:
        """The application's lifespan call; ends with it."""
        scope = {
            "type": "lifespan",
            "asgi": {"spec_version": "2.0", "version": "3.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._from_us.receive, self._send)
        except Exception as error:
            log.exception("http.lifespan_failed")
            if not self._started.is_set():
                self._failure = repr(error)
        finally:
            self._started.set()
            self._stopped.set()

    async def start(self) -> bool:
        """Waits until the application is up; whether it is. See `raise_failure`."""
        self._to_app.send_nowait({"type": "lifespan.startup"})
        with trio.move_on_after(STARTUP_SECONDS):
            await self._started.wait()
        if self._failure is None and not self._started.is_set():
            self._failure = f"not up after {STARTUP_SECONDS:g} seconds"
        return self._failure is None

    def raise_failure(self) -> None:
        """What went wrong at the start, as an error of ours; called outside of nurseries.

        Raises:
            StartError: the start-up hook failed or took over a minute.
        """
        if self._failure is not None:
            raise StartError(f"the HTTP application did not start: {self._failure}")

    async def stop(self, seconds: float) -> None:
        """Lets the shutdown hook run, for `seconds` at most."""
        self._to_app.send_nowait({"type": "lifespan.shutdown"})
        with trio.move_on_after(seconds) as patience:
            await self._stopped.wait()
        if patience.cancelled_caught:
            log.warning("http.shutdown_hook_cut", seconds=seconds)

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.failed":
            self._failure = message.get("message", "")
        if kind.startswith("lifespan.startup."):
            self._started.set()
        else:
            self._stopped.set()
