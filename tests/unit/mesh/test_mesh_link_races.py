"""What goes wrong between two nodes, in an awkward order: dials that nobody waits for any more,
links that replace each other, bytes that arrive together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import Endpoint, PeerId, RequestId, Role
from aimo_node.errors import NetworkError, RequestCancelled
from aimo_node.mesh import dials as dials_module
from aimo_node.mesh import network as network_module
from aimo_node.mesh.link import ByteStream, Link
from aimo_node.mesh.network import LINKS_PER_PEER_MAX, MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.pipe import PipeEnd, open_pipe
from aimo_node.ports.peer_network import IncomingRequest, OutgoingRequest
from aimo_node.protocol import codec, limits
from aimo_node.protocol.frames import Request, Subscribe
from aimo_node.protocol.handshake import Admission
from aimo_node.testing.memory_network import MemoryMesh

A, B = PeerId("a"), PeerId("b")


@asynccontextmanager
async def memory_mesh() -> AsyncIterator[MemoryMesh]:
    async with trio.open_nursery() as nursery:
        yield MemoryMesh(nursery)
        nursery.cancel_scope.cancel()


class SlowDialer:
    """Lets nobody through before `go`; remembers what it did."""

    def __init__(self, mesh: MemoryMesh, own: PeerId) -> None:
        self._mesh, self._own = mesh, own
        self.go = trio.Event()
        self.dialled = 0
        self.hung_up: list[PeerId] = []

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> ByteStream:
        self.dialled += 1
        await self.go.wait()
        return self._mesh.open_stream(self._own, peer)

    async def disconnect(self, peer: PeerId) -> None:
        self.hung_up.append(peer)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def slow_node() -> AsyncIterator[tuple[MemoryMesh, MeshNetwork, SlowDialer]]:
    """Node a, which dials b slowly."""
    async with memory_mesh() as mesh, trio.open_nursery() as nursery:
        node = await mesh.add("a")
        await mesh.add("b")
        dialer = SlowDialer(mesh, A)
        node.running = trio.Event()
        nursery.start_soon(node.run, dialer)
        await node.running.wait()
        yield mesh, node, dialer
        nursery.cancel_scope.cancel()


def request(number: int = 1) -> OutgoingRequest:
    return OutgoingRequest(
        RequestId(number.to_bytes(16, "big")), Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000
    )


async def never(incoming: IncomingRequest) -> None:
    """Takes a request and says nothing."""
    incoming.accept()
    await trio.sleep_forever()


class Hearer(IdleObserver):
    """Remembers what was announced and what links there were."""

    def __init__(self) -> None:
        self.heard: list[Link] = []
        self.closed: list[Link] = []

    def announced(self, link, frame) -> None:
        self.heard.append(link)

    def link_closed(self, link, code, message) -> None:
        self.closed.append(link)


async def test_dial_survives_the_one_who_asked_for_it() -> None:
    async with slow_node() as (_, node, dialer), trio.open_nursery() as nursery:
        impatient = trio.CancelScope()

        async def ask_impatiently() -> None:
            with impatient:
                await node.connect(B)

        nursery.start_soon(ask_impatiently)
        await wait_all_tasks_blocked()
        nursery.start_soon(node.connect, B)
        await wait_all_tasks_blocked()
        impatient.cancel()
        await wait_all_tasks_blocked()
        dialer.go.set()
        assert (await node.connect(B)).usable
        assert dialer.dialled == 1


async def test_failed_dial_fails_everybody_who_waited_for_it() -> None:
    """Not one after the other: the last of a hundred would wait a hundred times as long."""
    async with slow_node() as (mesh, node, dialer):
        mesh.remove(B)
        errors: list[NetworkError] = []

        async def fail() -> None:
            with pytest.raises(NetworkError) as caught:
                await node.connect(B)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            dialer.go.set()
        assert dialer.dialled == 1
        assert len(set(map(id, errors))) == 100


async def test_dials_at_a_time_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(dials_module, "DIALS_MAX", 1)
    async with slow_node() as (_, node, _dialer), trio.open_nursery() as nursery:
        nursery.start_soon(node.connect, B)
        await wait_all_tasks_blocked()
        with pytest.raises(NetworkError, match="already"):
            await node.connect(PeerId("c"))
        nursery.cancel_scope.cancel()


async def test_connection_is_kept_while_another_link_to_the_peer_is_being_opened() -> None:
    async with slow_node() as (_, node, dialer):
        dialer.go.set()
        link = await node.connect(B)
        near, far = open_pipe(B, A)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.accept, far)  # the peer's new link, without its Hello yet
            await wait_all_tasks_blocked()
            await link.stream.reset()
            await link.ended.wait()
            await wait_all_tasks_blocked()
            assert dialer.hung_up == []
            await near.reset()
        await wait_all_tasks_blocked()
        assert dialer.hung_up == [B]


async def test_one_peer_opens_a_few_links_and_no_more() -> None:
    async with memory_mesh() as mesh, trio.open_nursery() as nursery:
        node = await mesh.add("b")
        ends: list[PipeEnd] = []
        for _ in range(LINKS_PER_PEER_MAX + 1):
            near, far = open_pipe(A, B)
            ends.append(near)
            nursery.start_soon(node.accept, far)
            await wait_all_tasks_blocked()
        for end in ends[:-1]:
            assert await end.read()  # its Hello
        assert await ends[-1].read() == b""
        stranger, far = open_pipe(PeerId("c"), B)
        nursery.start_soon(node.accept, far)
        assert await stranger.read()
        nursery.cancel_scope.cancel()


async def test_new_link_replaces_one_that_has_fallen_silent(autojump_clock) -> None:
    """b linked to a, lost its power and was started again: a must not insist on the dead link,
    though by the rule for two dials at once the one that a opened would survive."""
    async with memory_mesh() as mesh, trio.open_nursery() as nursery:
        node = await mesh.add("a")
        near, far = open_pipe(A, B)
        mesh.open_stream = lambda source, target: near  # type: ignore[method-assign,assignment]
        node.remember(B, ["/memory/b"])
        hello = codec.encode(Admission(B).hello_to(A))
        await far.write(hello)
        old = await node.connect(B)
        await trio.sleep(limits.SUSPECT_SECONDS + 0.5)
        assert old.session.suspect
        reborn, accepted = open_pipe(B, A)
        nursery.start_soon(node.accept, accepted)
        await reborn.write(hello)
        await wait_all_tasks_blocked()
        link = node.link(B)
        assert link is not None
        assert link.stream is accepted
        assert old.closed.is_set()
        nursery.cancel_scope.cancel()


async def test_nothing_is_heard_over_a_link_that_was_refused_or_replaced() -> None:
    """Else who replaces links while subscribing would be remembered for ever."""
    async with memory_mesh() as mesh, trio.open_nursery() as nursery:
        node = await mesh.add("a", Role.PROVIDER, never)
        await mesh.add("b")
        hearer = Hearer()
        node.add_observer(hearer)
        kept = await node.connect(B)  # opened by the smaller id: it survives
        near, far = open_pipe(B, A)
        nursery.start_soon(node.accept, far)
        hello = codec.encode(Admission(B).hello_to(A))
        ask = codec.encode(
            Request(
                request_id=bytes(16),
                provider_id="",
                endpoint=int(Endpoint.CHAT),
                request_type=1,
                content_type=2,
                payload=b"{}",
                body_bytes=0,
                stream=True,
                headers={},
                deadline_ms=1000,
                public_id="",
            )
        )
        await near.write(hello + codec.encode(Subscribe([])) + ask)
        await wait_all_tasks_blocked()
        assert node.link(B) is kept
        assert hearer.heard == []
        nursery.cancel_scope.cancel()


async def test_observer_that_fails_costs_one_link_and_not_the_node() -> None:
    class Faulty(IdleObserver):
        def link_opened(self, link) -> None:
            raise RuntimeError("a bug")

    async with memory_mesh() as mesh:
        node = await mesh.add("a")
        await mesh.add("b")
        node.add_observer(Faulty())
        with contextlib.suppress(NetworkError):
            await node.connect(B)
        await wait_all_tasks_blocked()
        assert node.link(B) is None


async def test_reader_of_a_request_that_somebody_else_cancels_hears_of_it() -> None:
    async with memory_mesh() as mesh, trio.open_nursery() as nursery:
        node = await mesh.add("a")
        await mesh.add("b", Role.PROVIDER, never)
        exchange = await node.open_exchange(B, request())

        async def read() -> None:
            with pytest.raises(RequestCancelled):
                await exchange.receive()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await exchange.receive()
        exchange.cancel()


async def test_own_link_can_be_dialled_again_when_it_was_lost() -> None:
    async with memory_mesh() as mesh:
        node = await mesh.add("a", Role.PROVIDER, never)
        first = await node.connect(A)
        first.close()
        await first.ended.wait()
        second = await node.connect(A)
        assert second is not first
        assert second.usable


async def test_newest_addresses_win_when_the_book_is_full(monkeypatch) -> None:
    monkeypatch.setattr(network_module, "PEERS_MAX", 2)
    async with memory_mesh() as mesh:
        node = await mesh.add("a")
        for name in ("c", "d", "e"):
            node.remember(PeerId(name), [f"/memory/{name}"])
        with pytest.raises(NetworkError, match="no address"):
            await node.connect(PeerId("c"))
        with pytest.raises(NetworkError, match="nobody listens"):
            await node.connect(PeerId("e"))
