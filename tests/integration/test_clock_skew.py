"""Clocks may be 30 s apart, by whichever side and wherever they are compared; more is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aimo_node.domain.ids import Role
from aimo_node.errors import JoinFailed, PermissionDenied
from tests.integration.certified_nodes import START_MS, Clock, Mesh, Node

WITHIN = (-29, 29)
BEYOND = ((-31, "31 s behind"), (31, "31 s ahead of"), (95, "95 s ahead of"))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    made.relay.clock = Clock()
    async with made.relay.running():
        await made.relay.join(made.relay, b"")
        yield made


def off_by(mesh: Mesh, seconds: int) -> Node:
    node = mesh.node("edge", Role.EDGE)
    node.clock = Clock()
    node.clock.ms += seconds * 1000
    return node


@pytest.mark.parametrize("seconds", WITHIN)
async def test_a_node_whose_clock_is_nearly_right_joins_and_is_linked(
    mesh: Mesh, seconds: int
) -> None:
    node = off_by(mesh, seconds)
    async with node.running():
        await node.join(mesh.relay, await mesh.invite(Role.EDGE))
        await node.connect(mesh.relay)


@pytest.mark.parametrize(("seconds", "said"), BEYOND)
async def test_a_node_whose_clock_is_off_is_told_by_how_much(
    mesh: Mesh, seconds: int, said: str
) -> None:
    """Before its invite is used up; it can go on with it once the clock is set."""
    node, invite = off_by(mesh, seconds), await mesh.invite(Role.EDGE)
    async with node.running():
        with pytest.raises(JoinFailed, match=f"this machine's clock is {said} the authority's"):
            await node.join(mesh.relay, invite)
        node.clock.ms = START_MS
        await node.join(mesh.relay, invite)


@pytest.mark.parametrize("seconds", WITHIN)
async def test_a_relay_whose_clock_is_nearly_right_admits_newcomers(
    mesh: Mesh, seconds: int
) -> None:
    node = off_by(mesh, 0)
    async with node.running():
        await node.join(mesh.relay, await mesh.invite(Role.EDGE))
        mesh.relay.clock.ms += seconds * 1000
        await node.connect(mesh.relay)


async def test_a_relay_whose_clock_is_behind_says_so_when_it_refuses(mesh: Mesh) -> None:
    """The newcomer reads it: its own clock is right, as the authority has seen."""
    node = off_by(mesh, 0)
    async with node.running():
        await node.join(mesh.relay, await mesh.invite(Role.EDGE))
        mesh.relay.clock.ms -= 31_000
        with pytest.raises(PermissionDenied, match=r"31 s in the future, by the clock of whoever"):
            await node.connect(mesh.relay)
