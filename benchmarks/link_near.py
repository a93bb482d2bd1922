"""The near end of `benchmarks.link`: what is done over a link, and the same over a bare stream."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, PeerId, RequestId, Role
from aimo_node.domain.join import peer_of_address
from aimo_node.mesh.exchange import Parking
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import OutgoingRequest
from aimo_node.protocol.frames import Receipt
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Announcement
from benchmarks.link_child import BODY_BYTES, ECHO_PROTOCOL, POUR_ORDER

LONE_BYTES: Final = 200
STREAMS: Final = 32
"""Requests whose chunks queue at a time."""
BULK_REQUESTS: Final = 4
"""Answers of 8 MB that come at a time."""


class Answered(IdleObserver):
    """Waits for the answer to a lone frame, as a request waits for its parts."""

    def __init__(self) -> None:
        self._parking = Parking()

    async def trip(self, link: Link, frame: Receipt) -> None:
        """One frame there and one back."""
        link.announce(frame)
        await self._parking.wait()

    def announced(self, link: Link, frame: Announcement) -> None:
        """The answer."""
        self._parking.wake()


@dataclass(frozen=True, slots=True)
class Near:
    """A node, and the address of the far end."""

    host: MeshHost
    network: MeshNetwork
    answered: Answered
    address: str

    @property
    def far(self) -> PeerId:
        """Who is at the far end."""
        return peer_of_address(self.address)

    async def bare(self, protocol: str) -> LinkStream:
        """libp2p's bare stream, over the connection of the link where there is one."""
        return await self.host.dial(self.far, [self.address], protocol=protocol)

    async def echoed(self, stream: LinkStream, count: int) -> float:
        """Median µs of lone round trips over a bare stream."""
        trips = []
        for _ in range(count):
            started = time.perf_counter()
            await stream.write(b"x" * LONE_BYTES)
            got = 0
            while got < LONE_BYTES:
                got += len(await stream.read(65_536))
            trips.append(time.perf_counter() - started)
        return statistics.median(trips) * 1e6

    async def lone(self, count: int) -> float:
        """Median µs of a frame over the link and one back, as many bytes each on the wire."""
        link = await self.network.connect(self.far)
        # what a frame costs beside its body: length, array, tag, the lengths of three fields
        frame = Receipt(b"x" * (LONE_BYTES - 77), b"s" * 64)
        trips = []
        for _ in range(count):
            started = time.perf_counter()
            await self.answered.trip(link, frame)
            trips.append(time.perf_counter() - started)
        return statistics.median(trips) * 1e6

    async def asked(self, count: int) -> float:
        """Median µs of a whole request, answered by one chunk."""
        trips = []
        for _ in range(count):
            started = time.perf_counter()
            await self.ask(b"1")
            trips.append(time.perf_counter() - started)
        return statistics.median(trips) * 1e6

    async def poured(self, stream: LinkStream, count: int) -> float:
        """Bytes a second over a bare stream, in writes of 64,000."""
        started, got = time.perf_counter(), 0
        await stream.write(POUR_ORDER.pack(count))
        while got < count:
            got += len(await stream.read(65_536))
        return count / (time.perf_counter() - started)

    async def chunks(self, count: int) -> float:
        """Chunks a second over the link when they queue."""
        each = count // STREAMS
        started = time.perf_counter()
        await self._ask_at_once(STREAMS, b"%d" % each, each + 1)
        return each * STREAMS / (time.perf_counter() - started)

    async def bulk(self) -> float:
        """Bytes a second of answers of 8 MB over the link."""
        started = time.perf_counter()
        await self._ask_at_once(BULK_REQUESTS, b"bulk", 2)
        return BULK_REQUESTS * BODY_BYTES / (time.perf_counter() - started)

    async def _ask_at_once(self, requests: int, order: bytes, parts: int) -> None:
        async def ask() -> None:
            received = await self.ask(order)
            if received != parts:
                raise RuntimeError(f"{received} parts arrived, {parts} were sent")

        async with trio.open_nursery() as nursery:
            for _ in range(requests):
                nursery.start_soon(ask)

    async def ask(self, order: bytes) -> int:
        """One request, read to its end; the parts that came, the last one included."""
        number = RequestId(uuid.uuid4().bytes)
        request = OutgoingRequest(
            number, Endpoint.CHAT, order, stream=order != b"bulk", deadline_ms=60_000
        )
        exchange = await self.network.open_exchange(self.far, request)
        received = 0
        while True:
            parts = await exchange.receive()
            received += len(parts)
            if isinstance(parts[-1], Finish):
                exchange.cancel()
                return received

    async def dialled(self) -> float:
        """Milliseconds from nothing to an open link: TCP, Noise, Yamux, stream, Hello both ways."""
        self.network.remember(self.far, [self.address])
        started = time.perf_counter()
        link = await self.network.connect(self.far)
        took = time.perf_counter() - started
        link.close()
        await link.ended.wait()
        await self._gone()
        return took * 1e3

    async def dialled_bare(self) -> float:
        """Milliseconds from nothing to a bare stream."""
        started = time.perf_counter()
        await self.bare(ECHO_PROTOCOL)
        took = time.perf_counter() - started
        await self.host.disconnect(self.far)
        await self._gone()
        return took * 1e3

    async def _gone(self) -> None:
        while self.far in self.host.connected_peers():  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.001)


@asynccontextmanager
async def near_node(
    folder: Path, name: str, address: str, listen: Sequence[str] = ()
) -> AsyncIterator[Near]:
    """A node that dials, and listens if it is told where."""
    identity = load_identity(folder / f"{name}.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.EDGE))
    answered = Answered()
    network.add_observer(answered)
    host = MeshHost(identity, listen, limits=HostLimits(), on_stream=network.accept)
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        await network.running.wait()
        if address:
            network.remember(peer_of_address(address), [address])
        yield Near(host, network, answered, address)
        await network.close()
        nursery.cancel_scope.cancel()
