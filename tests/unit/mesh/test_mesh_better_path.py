"""A direct link beside a circuit: both ends keep the same one; what runs on the other ends well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import Endpoint, FinishReason, PeerId, RequestId, Role
from aimo_node.errors import CloseCode
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import LINKS_PER_PEER_MAX, MeshNetwork
from aimo_node.mesh.pipe import open_pipe
from aimo_node.mesh.rivals import HANDOVER_SECONDS
from aimo_node.ports.peer_network import IncomingRequest, OutgoingRequest
from aimo_node.testing.memory_network import MemoryMesh

A, B = PeerId("a"), PeerId("b")
PIECES = 50


class Engine:
    """Says half of its answer, and the rest when it is let."""

    def __init__(self) -> None:
        self.go_on = trio.Event()

    async def answer(self, incoming: IncomingRequest) -> None:
        incoming.accept()
        for index in range(PIECES):
            if index == PIECES // 2:
                await self.go_on.wait()
            incoming.send_text(f"w{index} ")
        incoming.finish(Finish(FinishReason.STOP, Usage(1, PIECES)))


class Pair:
    """Two nodes, the smaller peer id first, and links between them at will."""

    def __init__(self, mesh: MemoryMesh, nursery: trio.Nursery) -> None:
        self._mesh = mesh
        self._nursery = nursery
        self.engine = Engine()
        self.first: MeshNetwork
        self.second: MeshNetwork

    async def start(self) -> Pair:
        """Start both."""
        self.first = await self._mesh.add("a", Role.EDGE)
        self.second = await self._mesh.add("b", Role.PROVIDER, self.engine.answer)
        return self

    async def link(self, opener: MeshNetwork, path: str) -> None:
        """A link of one kind, opened by one of them beside whatever there is."""
        far = self.second if opener is self.first else self.first
        near_end, far_end = open_pipe(opener.peer, far.peer)
        near_end.path = far_end.path = path
        self._nursery.start_soon(far.accept, far_end)
        if opener.link(far.peer) is None:
            self._nursery.start_soon(opener._live, opener._make_link(near_end))
        else:
            await opener.adopt(near_end)
        await wait_all_tasks_blocked()

    @property
    def links(self) -> tuple[Link | None, Link | None]:
        """Each one's link to the other."""
        return self.first.link(B), self.second.link(A)

    def paths(self) -> tuple[str, str]:
        """What each uses."""
        near, far = self.links
        assert near is not None
        assert far is not None
        assert near.stream.initiator is not far.stream.initiator, "it is the same link"
        return near.path, far.path


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        yield await Pair(MemoryMesh(nursery), nursery).start()
        nursery.cancel_scope.cancel()


def request(number: int = 1) -> OutgoingRequest:
    return OutgoingRequest(
        RequestId(number.to_bytes(16, "big")), Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000
    )


@pytest.mark.parametrize("circuit_by", ["first", "second"])
@pytest.mark.parametrize("direct_by", ["first", "second"])
async def test_direct_takes_the_place_of_a_circuit_whoever_opened_which(
    circuit_by: str, direct_by: str, autojump_clock: MockClock
) -> None:
    async with pair() as both:
        await both.link(getattr(both, circuit_by), "circuit")
        assert both.paths() == ("circuit", "circuit")
        await both.link(getattr(both, direct_by), "direct")
        assert both.paths() == ("direct", "direct")
        await trio.sleep(HANDOVER_SECONDS * 4)
        assert both.paths() == ("direct", "direct")
        assert len(both.first._living) == len(both.second._living) == 1


@pytest.mark.parametrize(("direct_by", "circuit_by"), [("first", "second"), ("second", "first")])
async def test_a_circuit_that_comes_later_does_not_take_the_place_of_direct(
    direct_by: str, circuit_by: str, autojump_clock: MockClock
) -> None:
    """Whichever peer id is the smaller one: else the two would go back and forth."""
    async with pair() as both:
        await both.link(getattr(both, direct_by), "direct")
        before = both.links
        await both.link(getattr(both, circuit_by), "circuit")
        await trio.sleep(HANDOVER_SECONDS * 2)
        assert both.links == before


async def test_a_circuit_of_who_opened_the_direct_link_does() -> None:
    """It has lost the direct one: else it could not be reached until this end notices, too."""
    async with pair() as both:
        await both.link(both.first, "direct")
        await both.link(both.first, "circuit")
        assert both.paths() == ("circuit", "circuit")


async def test_what_runs_on_the_circuit_goes_on_and_what_comes_takes_the_direct_link(
    autojump_clock: MockClock,
) -> None:
    async with pair() as both:
        await both.link(both.first, "circuit")
        old = both.first.link(B)
        running = await both.first.open_exchange(B, request())
        parts = await running.receive()
        await both.link(both.second, "direct")
        late = old.open_exchange(request(2))  # as if the news had not arrived yet
        new = await both.first.open_exchange(B, request(3))
        assert (running.path, late.path, new.path) == ("circuit", "circuit", "direct")
        await trio.sleep(HANDOVER_SECONDS * 4)
        assert not old.closed.is_set(), "it is needed"
        both.engine.go_on.set()
        for exchange, heard in ((running, parts), (late, []), (new, [])):
            while not (heard and isinstance(heard[-1], Finish)):
                heard.extend(await exchange.receive())
            assert heard[:-1] == [f"w{index} " for index in range(PIECES)]
            exchange.cancel()
        await old.ended.wait()
        assert old.close_code in {CloseCode.Normal, CloseCode.Draining}
        assert both.paths() == ("direct", "direct")


async def test_a_direct_link_opens_although_the_circuit_has_gone_meanwhile() -> None:
    """As when the relay dies at that moment."""
    async with pair() as both:
        await both.link(both.first, "circuit")
        old = both.first.link(B)
        assert old is not None
        old.close()
        near, far = open_pipe(A, B)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.second.accept, far)
            assert await both.first.adopt(near)
            assert both.paths() == ("direct", "direct")
            nursery.cancel_scope.cancel()


async def test_a_stream_on_which_nobody_says_hello_takes_no_place(
    autojump_clock: MockClock,
) -> None:
    async with pair() as both:
        await both.link(both.first, "circuit")
        near, _ = open_pipe(A, B)
        assert not await both.first.adopt(near)
        await trio.sleep(HANDOVER_SECONDS)
        assert both.paths() == ("circuit", "circuit")
        assert len(both.first._living) == 1


async def test_a_peer_that_never_lets_go_of_circuits_holds_so_many_and_no_more() -> None:
    """It opens one after another, with a request on each that does not end."""
    async with pair() as both:
        for number in range(LINKS_PER_PEER_MAX * 2):
            await both.link(both.first, "circuit" if number % 2 else "direct")
            await both.first.open_exchange(B, request(number))
            await wait_all_tasks_blocked()
            assert len(both.second._living) <= LINKS_PER_PEER_MAX
