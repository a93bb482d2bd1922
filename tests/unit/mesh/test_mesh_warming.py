"""When an edge dials a provider that it could not reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import trio

from aimo_node.domain.ids import ModelName, PeerId, Role
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status
from aimo_node.errors import NetworkError
from aimo_node.mesh.directory.warming import RETRY_SECONDS, RETRY_SECONDS_MAX, WarmLinks
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol.handshake import Admission
from aimo_node.routing.table import RoutingTable

PROVIDER, RELAY = PeerId("provider"), PeerId("relay")


class NobodyThere:
    """A dialer to which nobody answers."""

    def __init__(self) -> None:
        self.dials: list[tuple[float, tuple[str, ...]]] = []

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> NoReturn:
        self.dials.append((trio.current_time(), tuple(addresses)))
        raise NetworkError("nobody there")

    async def disconnect(self, peer: PeerId) -> None:
        """Nothing to close."""


async def test_a_provider_that_moved_is_dialled_soon_whatever_failed_before(
    autojump_clock,
) -> None:
    """What failed was another way: one behind NAT gets its circuit a moment after its start."""
    dialer, table = NobodyThere(), RoutingTable()
    network = MeshNetwork(Admission(PeerId("edge"), None, Role.EDGE))
    models = (ModelInfo(ModelName("m")),)
    descriptor = Descriptor(PROVIDER, 1, models, (), engine_state=EngineState.RUNNING, revision=1)
    table.describe(RELAY, descriptor, 0.0)
    table.report(RELAY, Status(PROVIDER, 1, 1, Health.HEALTHY, Load()), 0.0)
    warm = WarmLinks(network, table)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run, dialer)
        await network.running.wait()
        nursery.start_soon(warm.run)
        warm.locate(PROVIDER, ["/old"])
        await trio.sleep(RETRY_SECONDS_MAX * 4)
        assert dialer.dials[-1][0] - dialer.dials[-2][0] >= RETRY_SECONDS_MAX
        warm.locate(PROVIDER, ["/old"])
        count = len(dialer.dials)
        moved_at = trio.current_time()
        warm.locate(PROVIDER, ["/new"])
        await trio.sleep(2 * RETRY_SECONDS + 0.1)
        assert dialer.dials[count][1] == ("/new",)
        assert dialer.dials[count][0] - moved_at <= 2 * RETRY_SECONDS
        nursery.cancel_scope.cancel()
