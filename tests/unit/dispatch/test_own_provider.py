"""A node that is edge and provider knows itself, and what it knows grows with each refresh."""

from __future__ import annotations

from dataclasses import replace

from aimo_node.dispatch.own_provider import OwnProvider
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.routing.policy import RouteRequest, choose
from aimo_node.routing.table import STATUS_SECONDS_MAX, RoutingTable

OWN = PeerId("own")
TINY, LARGE = ModelName("tiny"), ModelName("large")
OFFER = Descriptor(
    OWN, 7, (ModelInfo(TINY),), engine="echo", engine_state=EngineState.RUNNING, requests_max=4
)


class Node:
    """What a node would say of itself."""

    def __init__(self) -> None:
        self.table = RoutingTable()
        self.descriptor = OFFER
        self.load = Load()
        self.own = OwnProvider(self.table, lambda: self.descriptor, self._status)

    def _status(self) -> Status:
        return Status(OWN, 7, 0, Health.HEALTHY, self.load)

    def candidates(self, model: ModelName = TINY) -> list[PeerId]:
        return [one.peer for one in choose(RouteRequest(model), self.table, 0.0).candidates]


def test_own_engines_can_be_asked_without_a_relay_and_without_a_dial() -> None:
    node = Node()
    assert node.candidates() == []
    node.own.refresh(0.0)
    (entry,) = node.table
    assert node.candidates() == [OWN]
    assert (entry.linked, entry.path) == (True, "local")
    assert set(entry.heard) == {OWN}


def test_every_refresh_brings_the_load_and_only_a_change_a_revision() -> None:
    node = Node()
    node.own.refresh(0.0)
    (entry,) = node.table
    for running in (3, 1):
        node.load = Load(running=running)
        node.own.refresh(float(running))
        assert entry.load.running == running
    assert entry.descriptor.revision == 1
    node.descriptor = replace(OFFER, models=(ModelInfo(LARGE),))
    node.own.refresh(4.0)
    assert (node.candidates(), node.candidates(LARGE)) == ([], [OWN])
    assert entry.descriptor.revision == 2
    node.descriptor = OFFER
    node.own.refresh(5.0)
    assert (node.candidates(), node.candidates(LARGE)) == ([OWN], [])


def test_it_never_expires_however_long_nothing_changes() -> None:
    node = Node()
    node.own.refresh(0.0)
    assert node.table.expire(10 * STATUS_SECONDS_MAX) == []


def test_a_node_without_engines_is_no_provider_and_can_become_one_again() -> None:
    node = Node()
    for _ in range(2):
        node.descriptor = OFFER
        node.own.refresh(0.0)
        assert node.candidates() == [OWN]
        node.descriptor = replace(OFFER, models=())
        node.own.refresh(1.0)
        assert len(node.table) == 0


def test_an_engine_that_failed_is_shown_though_it_offers_nothing() -> None:
    node = Node()
    failed = EngineInfo("gpu", "vllm", EngineState.ERROR, (TINY,))
    node.descriptor = replace(OFFER, models=(), engines=(failed,))
    node.own.refresh(0.0)
    (entry,) = node.table
    assert entry.descriptor.engines == (failed,)
    assert node.candidates() == []
