"""What all connections of one server share: the application, limits, the table of connections, the
drain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import trio

from aimo_node.edge.serving.connection_table import ConnectionTable
from aimo_node.edge.serving.hypercorn_parts import Application, hypercorn_config, worker_context
from aimo_node.edge.serving.limits import HttpLimits
from aimo_node.edge.serving.owner import ConnectionOwner, Phase

LINGER_SECONDS = 2.0
"""After the last answer, for the consumer to read it: closing a socket that still receives resets
the connection and destroys what the consumer has not read yet."""


@dataclass(slots=True, eq=False)
class ServingState:
    """Shared by the accept loop, the sweeper and all connections; used from one trio thread only.

    Attributes:
        seconds_for: how long a connection may wait in each phase.
        now: `trio.current_time()` as of the last sweep, exact enough for deadlines and cheap to
            read.
        date: the Date header's value, as of the last sweep.
        is_draining: no connection is kept after its answer.
        running: requests that began before the drain and are not over.
        all_done: set once the drain has begun and none of them is left.
        bodies_bytes: request bodies and unfinished WebSocket messages held.
        refused: connections turned away since the last report.
        all_closed: once there, set when the last connection is closed.
    """

    app: Application
    limits: HttpLimits
    app_state: dict[str, Any]
    table: ConnectionTable[ConnectionOwner] = field(init=False)
    seconds_for: dict[Phase, float] = field(init=False)
    config: Any = field(init=False)
    context: Any = field(init=False, default_factory=worker_context)
    now: float = field(init=False, default_factory=trio.current_time)
    date: bytes = field(init=False, default=b"")
    is_draining: bool = field(init=False, default=False)
    running: int = field(init=False, default=0)
    all_done: trio.Event = field(init=False, default_factory=trio.Event)
    bodies_bytes: int = field(init=False, default=0)
    refused: int = field(init=False, default=0)
    all_closed: trio.Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.config = hypercorn_config(self.limits)
        self.table = ConnectionTable(
            self.limits.connections_max, self.limits.connections_per_address_max
        )
        self.seconds_for = {
            Phase.FRESH: self.limits.header_seconds,
            Phase.HEAD: self.limits.header_seconds,
            Phase.IDLE: self.limits.idle_seconds,
            Phase.BODY: self.limits.body_seconds,
            Phase.ANSWER: math.inf,
            Phase.WEBSOCKET: self.limits.websocket_silence_seconds,
            Phase.LINGER: LINGER_SECONDS,
        }
        self.tick()

    def tick(self) -> None:
        """Reads the clocks; the sweeper's business."""
        self.now = trio.current_time()
        self.date = formatdate(usegmt=True).encode()

    def begin_drain(self) -> None:
        """From now on nothing is kept open; what runs may end."""
        self.is_draining = True
        if not self.running:
            self.all_done.set()

    def connection_closed(self, connection: ConnectionOwner) -> None:
        """A connection's task ends."""
        self.table.remove(connection)
        if self.all_closed is not None and not self.table:
            self.all_closed.set()

    def request_ended(self) -> None:
        """One of `running` is over."""
        self.running -= 1
        if self.is_draining and not self.running:
            self.all_done.set()
