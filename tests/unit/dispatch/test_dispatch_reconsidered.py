"""Fail-over looks at the mesh as it is by then, not as it was when the request came."""

from __future__ import annotations

import pytest
import trio

from aimo_node.dispatch.dispatcher import ATTEMPTS_MAX
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import NetworkError
from tests.unit.dispatch.test_dispatch_attempts import (
    DONE,
    FakeNetwork,
    answering,
    ask,
    dispatcher_of,
    lost_later,
    refusing,
)


async def test_provider_that_has_fallen_silent_meanwhile_is_not_the_next(autojump_clock):
    """Each provider that froze would cost another twelve seconds."""
    network = FakeNetwork(first=lost_later, silent=answering, good=answering)
    dispatcher = dispatcher_of(network, "first", "silent", "good")
    answer = await dispatcher.open(ask())
    dispatcher.table.link_state(PeerId("silent"), suspect=True, draining=False)
    assert await answer.receive() == ["hi", DONE]
    assert network.asked == ["first", "good"]
    answer.cancel()


async def test_provider_that_has_come_meanwhile_is_tried(autojump_clock):
    network = FakeNetwork(first=lost_later, newcomer=answering)
    dispatcher = dispatcher_of(network, "first")
    answer = await dispatcher.open(ask())
    models = (ModelInfo(ModelName("tiny")),)
    newcomer = Descriptor(PeerId("newcomer"), 1, models, engine_state=EngineState.RUNNING)
    dispatcher.table.describe(PeerId("relay"), newcomer, trio.current_time())
    assert await answer.receive() == ["hi", DONE]
    assert (answer.provider, answer.attempts) == ("newcomer", 2)
    answer.cancel()


async def test_nobody_is_asked_twice_and_no_more_than_the_limit(autojump_clock):
    """A provider that refuses stays as attractive as it was."""
    peers = [f"busy{number}" for number in range(ATTEMPTS_MAX + 2)]
    network = FakeNetwork(**dict.fromkeys(peers, refusing))
    with pytest.raises(Exception, match="busy"):
        await dispatcher_of(network, *peers).open(ask())
    assert network.asked == peers[:ATTEMPTS_MAX]
    lonely = FakeNetwork(only=lost_later)
    answer = await dispatcher_of(lonely, "only").open(ask())
    with pytest.raises(NetworkError):
        await answer.receive()
    assert lonely.asked == ["only"]
    answer.cancel()
