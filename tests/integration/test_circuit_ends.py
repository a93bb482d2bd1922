"""How circuits end: not before what runs on them, and not without a word."""

import pytest
import trio

from aimo_node.mesh import link
from aimo_node.mesh.circuits.quotas import CircuitLimits
from tests.integration.circuit_parties import triangle, until


@pytest.mark.parametrize("who", ["provider", "edge"])
async def test_a_node_that_drains_finishes_the_answers_on_its_circuits(who, monkeypatch):
    """Its link to the relay is idle, and would end at once; the circuits would end with it."""
    monkeypatch.setattr(link.limits, "PING_SECONDS", 0.1)
    limits = CircuitLimits(member_bytes_per_second=400_000)
    async with triangle(limits=limits) as (relay, provider, edge), trio.open_nursery() as nursery:
        answers = []

        async def ask() -> None:
            answers.append(await edge.ask(provider.peer, 800))

        nursery.start_soon(ask)
        await until(lambda: relay.relay.bytes_carried > 50_000)
        leaving = provider if who == "provider" else edge
        leaving.network.drain()
        await until(lambda: answers != [])
        assert len(answers[0]) == 801
        await until(lambda: not list(leaving.network.links()))
