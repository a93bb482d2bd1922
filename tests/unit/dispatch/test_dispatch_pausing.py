"""What a pause means for a request that was accepted before it and has not begun."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.quota import Quota
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.ids import PeerId
from aimo_node.domain.models import EngineState
from aimo_node.errors import Draining
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FakeEngine
from tests.unit.dispatch.test_dispatch_metering import Incoming

OWN = PeerId("own")


class Uploading(Incoming):
    """A request whose body is on its way."""

    inline = False

    def __init__(self) -> None:
        super().__init__()
        self.accepted = trio.Event()
        self.arrived = trio.Event()

    def accept(self, model_digest: bytes = b"", queue_position: int = 0) -> None:
        self.accepted.set()

    async def read_body(self) -> bytes:
        await self.arrived.wait()
        return self.body


async def test_an_upload_that_ends_after_a_pause_loads_no_engine_and_is_sent_elsewhere() -> None:
    """Else it takes the memory back that its owner has just freed."""
    made = ProviderService(OWN, NodeMetrics().provider, Meter(OWN, Quota(), lambda: 1.8e9))
    hosted = made.add(EnginePlan("a", "fake", FakeEngine, idle_seconds=1_000.0))
    refused: list[Draining] = []

    async def ask(upload: Uploading) -> None:
        with pytest.raises(Draining, match="paused by its owner") as caught:
            await made.handle(upload)
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await made.wait_settled()
        upload = Uploading()
        nursery.start_soon(ask, upload)
        await upload.accepted.wait()
        made.pause()
        await hosted.unload_now()
        upload.arrived.set()
        await trio.testing.wait_all_tasks_blocked()
        assert refused
        assert hosted.state is EngineState.STOPPED
        nursery.cancel_scope.cancel()
