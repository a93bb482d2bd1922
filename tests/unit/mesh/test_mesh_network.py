"""Links between nodes, over pipes: one for each pair, admitted, alive, closed in good order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import Endpoint, FinishReason, PeerId, RequestId, Role
from aimo_node.errors import (
    CloseCode,
    Draining,
    EngineFailed,
    ModelNotFound,
    NetworkError,
    PermissionDenied,
)
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.pipe import open_pipe
from aimo_node.ports.peer_network import IncomingRequest, OutgoingRequest
from aimo_node.protocol import codec, limits
from aimo_node.protocol.handshake import Admission
from aimo_node.testing.memory_network import MemoryMesh


@asynccontextmanager
async def memory_mesh() -> AsyncIterator[MemoryMesh]:
    async with trio.open_nursery() as nursery:
        yield MemoryMesh(nursery)
        nursery.cancel_scope.cancel()


def request(number: int = 1, body: bytes = b"{}") -> OutgoingRequest:
    return OutgoingRequest(
        RequestId(number.to_bytes(16, "big")), Endpoint.CHAT, body, stream=True, deadline_ms=60_000
    )


class Watcher(IdleObserver):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.opened: list[PeerId] = []
        self.closed: list[tuple[PeerId, CloseCode]] = []
        self.changed: list[bool] = []

    def link_opened(self, link) -> None:
        self.opened.append(link.peer)

    def link_closed(self, link, code, message) -> None:
        self.closed.append((link.peer, code))

    def link_changed(self, link) -> None:
        self.changed.append(link.session.suspect)


async def answer_words(incoming: IncomingRequest) -> None:
    """Says as many words as the body tells."""
    count = int(await incoming.read_body())
    incoming.accept()
    for index in range(count):
        incoming.send_text(f"w{index} ")
    incoming.finish(Finish(FinishReason.STOP, Usage(1, count)))


async def test_both_ends_use_one_link_whoever_dials() -> None:
    async with memory_mesh() as mesh:
        first, second = await mesh.add("a"), await mesh.add("b")
        link = await first.connect(PeerId("b"))
        await wait_all_tasks_blocked()
        assert await second.connect(PeerId("a")) is second.link(PeerId("a"))
        assert await first.connect(PeerId("b")) is link
        assert mesh.dials == [("a", "b")]


async def test_when_both_dial_at_once_one_link_is_left_at_both_ends() -> None:
    async with memory_mesh() as mesh:
        first, second = await mesh.add("a"), await mesh.add("b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.connect, PeerId("b"))
            nursery.start_soon(second.connect, PeerId("a"))
        await wait_all_tasks_blocked()
        assert len(mesh.dials) == 2
        near, far = first.link(PeerId("b")), second.link(PeerId("a"))
        assert near is not None
        assert far is not None
        assert near.stream.initiator
        assert not far.stream.initiator


async def test_many_who_want_the_same_peer_dial_it_once() -> None:
    async with memory_mesh() as mesh:
        first = await mesh.add("a")
        await mesh.add("b")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(first.connect, PeerId("b"))
        assert mesh.dials == [("a", "b")]


async def test_nobody_at_the_address_is_a_network_error() -> None:
    async with memory_mesh() as mesh:
        first = await mesh.add("a")
        with pytest.raises(NetworkError, match="no address"):
            await first.connect(PeerId("nobody"))
        first.remember(PeerId("gone"), ["/memory/gone"])
        with pytest.raises(NetworkError, match="nobody listens"):
            await first.connect(PeerId("gone"))


@pytest.mark.parametrize(("ours", "theirs"), [(b"1" * 32, b"2" * 32), (None, b"2" * 32)])
async def test_another_mesh_is_refused_and_says_why(
    ours: bytes | None, theirs: bytes | None
) -> None:
    async with memory_mesh() as mesh:
        first = await mesh.add("a", secret=ours)
        second = await mesh.add("b", secret=theirs)
        with pytest.raises(PermissionDenied, match="another mesh"):
            await first.connect(PeerId("b"))
        await wait_all_tasks_blocked()
        assert first.link(PeerId("b")) is None
        assert second.link(PeerId("a")) is None


async def test_a_node_reaches_its_own_provider_without_libp2p() -> None:
    async with memory_mesh() as mesh:
        node = await mesh.add("a", Role.EDGE | Role.PROVIDER, answer_words)
        exchange = await node.open_exchange(PeerId("a"), request(body=b"3"))
        assert exchange.path == "local"
        parts = []
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await exchange.receive()
        assert parts[:-1] == ["w0 ", "w1 ", "w2 "]
        assert mesh.dials == []


async def test_requests_cross_a_link_in_both_directions_at_once() -> None:
    async with memory_mesh() as mesh:
        first = await mesh.add("a", Role.PROVIDER, answer_words)
        second = await mesh.add("b", Role.PROVIDER, answer_words)
        done: list[int] = []

        async def ask(network: MeshNetwork, peer: str, number: int) -> None:
            exchange = await network.open_exchange(PeerId(peer), request(number, b"50"))
            parts = []
            while not (parts and isinstance(parts[-1], Finish)):
                parts += await exchange.receive()
            exchange.cancel()
            assert parts[:-1] == [f"w{index} " for index in range(50)]
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, first, "b", number)
                nursery.start_soon(ask, second, "a", 100 + number)
        assert len(done) == 40


async def test_a_slow_consumer_holds_up_only_itself() -> None:
    sent: dict[str, int] = {}

    async def flood(incoming: IncomingRequest) -> None:
        incoming.accept()
        name = (await incoming.read_body()).decode()
        for index in range(2000):
            incoming.send_text("x" * 100)
            sent[name] = index + 1
            await incoming.wait_backlog_below(1000)
        incoming.finish(Finish(FinishReason.STOP, Usage()))

    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        await mesh.add("b", Role.PROVIDER, flood)
        slow = await edge.open_exchange(PeerId("b"), request(1, b"slow"))
        fast = await edge.open_exchange(PeerId("b"), request(2, b"fast"))
        parts = []
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await fast.receive()
        assert len(parts) == 2001
        await wait_all_tasks_blocked()
        assert sent["slow"] * 100 <= limits.CREDIT_INITIAL_BYTES + 2000
        assert len(await slow.receive()) * 100 <= limits.CREDIT_INITIAL_BYTES + 100
        slow.cancel()


async def test_an_engine_that_cannot_wait_is_stopped_when_too_much_piles_up() -> None:
    ended = trio.Event()

    async def pour(incoming: IncomingRequest) -> None:
        incoming.accept()
        try:
            while True:
                incoming.send_text("x" * 5000)
                await trio.lowlevel.checkpoint()
        finally:
            ended.set()

    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        await mesh.add("b", Role.PROVIDER, pour)
        exchange = await edge.open_exchange(PeerId("b"), request())
        await ended.wait()
        received = 0
        with pytest.raises(Exception, match="too slow"):  # noqa: PT012 (until the error comes)
            while True:
                received += sum(len(part) for part in await exchange.receive())
        assert received <= limits.CREDIT_WINDOW_BYTES_MAX


async def test_a_cut_link_fails_what_runs_on_it_and_stops_the_handler() -> None:
    cancelled = trio.Event()

    async def wait(incoming: IncomingRequest) -> None:
        incoming.accept()
        incoming.send_text("first")
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        await mesh.add("b", Role.PROVIDER, wait)
        watcher = Watcher()
        edge.add_observer(watcher)
        exchange = await edge.open_exchange(PeerId("b"), request())
        assert await exchange.receive() == ["first"]
        mesh.remove(PeerId("b"))
        with pytest.raises(NetworkError, match="lost"):
            await exchange.receive()
        await cancelled.wait()
        await wait_all_tasks_blocked()
        assert [peer for peer, _ in watcher.closed] == ["b"]
        assert edge.link(PeerId("b")) is None


async def test_a_handler_that_crashes_ends_its_request_and_nothing_else() -> None:
    async def crash(incoming: IncomingRequest) -> None:
        if await incoming.read_body() == b"crash":
            raise RuntimeError("a bug")
        raise EngineFailed("the engine is down")

    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        await mesh.add("b", Role.PROVIDER, crash)
        exchange = await edge.open_exchange(PeerId("b"), request(1, b"crash"))
        with pytest.raises(Exception, match="its log says why"):
            await exchange.receive()
        exchange = await edge.open_exchange(PeerId("b"), request(2))
        with pytest.raises(EngineFailed, match="the engine is down"):
            await exchange.receive()


async def test_a_node_that_serves_nothing_says_so() -> None:
    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        await mesh.add("b", Role.RELAY)
        exchange = await edge.open_exchange(PeerId("b"), request())
        with pytest.raises(ModelNotFound, match="serves no models"):
            await exchange.receive()


async def test_a_silent_peer_becomes_suspect_and_is_given_up(autojump_clock) -> None:
    async with memory_mesh() as mesh:
        node = await mesh.add("a")
        watcher = Watcher()
        node.add_observer(watcher)
        near, far = open_pipe(PeerId("a"), PeerId("b"))
        mesh.open_stream = lambda source, target: near  # type: ignore[method-assign,assignment]
        node.remember(PeerId("b"), ["/memory/b"])
        await far.write(codec.encode(Admission(PeerId("b")).hello_to(PeerId("a"))))
        started = trio.current_time()
        link = await node.connect(PeerId("b"))
        await link.closed.wait()
        assert watcher.changed == [True]
        assert watcher.closed == [(PeerId("b"), CloseCode.PeerSilent)]
        assert trio.current_time() - started == pytest.approx(limits.DEAD_SECONDS)


async def test_a_peer_that_says_no_hello_is_let_go(autojump_clock) -> None:
    async with memory_mesh() as mesh:
        node = await mesh.add("a")
        near, far = open_pipe(PeerId("stranger"), PeerId("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.accept, far)
            with trio.fail_after(limits.HELLO_SECONDS + 1):
                while await near.read():
                    pass


async def test_a_draining_node_is_left_alone_and_its_link_ends_with_the_last_request(
    autojump_clock,
) -> None:
    go = trio.Event()

    async def wait(incoming: IncomingRequest) -> None:
        incoming.accept()
        await go.wait()
        incoming.finish(Finish(FinishReason.STOP, Usage()))

    async with memory_mesh() as mesh:
        edge = await mesh.add("a")
        provider = await mesh.add("b", Role.PROVIDER, wait)
        exchange = await edge.open_exchange(PeerId("b"), request())
        await wait_all_tasks_blocked()
        provider.drain()
        await wait_all_tasks_blocked()
        with pytest.raises(Draining):
            await edge.open_exchange(PeerId("b"), request(2))
        go.set()
        assert isinstance((await exchange.receive())[-1], Finish)
        link = provider.link(PeerId("a"))
        assert link is not None
        with trio.fail_after(2 * limits.PING_SECONDS):
            await link.closed.wait()
