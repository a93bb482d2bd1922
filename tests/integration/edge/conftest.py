"""The edge on a real port of loopback, over the fake door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import trio

from aimo_node.edge.app import create_app
from aimo_node.edge.serving.limits import HttpBinding, HttpLimits
from aimo_node.edge.serving.server import HttpServer
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.testing.fake_door import FakeDoor

GRACE_SECONDS = 0.5


@dataclass
class Edge:
    """A running edge; set `drain` to let it go away."""

    url: str
    door: FakeDoor
    drain: trio.Event
    stopped: trio.Event = field(default_factory=trio.Event)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


async def start_edge(nursery: trio.Nursery, door: FakeDoor, settings: EdgeSettings) -> Edge:
    server, drain = HttpServer(), trio.Event()
    signals = DrainSignals(begun=drain, grace_over=server.grace_over)
    app = create_app(door, settings, drain=signals, now=lambda: 1_700_000_000)
    edge = Edge("", door, drain)

    async def serve(task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        await server.serve(
            app,
            HttpBinding("127.0.0.1", 0),
            HttpLimits(),
            drain=drain,
            grace_seconds=GRACE_SECONDS,
            task_status=task_status,
        )
        edge.stopped.set()

    edge.url = await nursery.start(serve)
    return edge


@pytest.fixture
async def edge(nursery: trio.Nursery) -> AsyncIterator[Edge]:
    yield await start_edge(nursery, FakeDoor(), EdgeSettings(comment_seconds=0.05))
    nursery.cancel_scope.cancel()
