"""One link against the raw libp2p stream it runs on, two processes, in one run.

    python -m benchmarks.link

A lone frame's round trip: a Request answered by one Response, against 200 bytes echoed on the bare
stream. Throughput: chunks of 100 bytes that queue, against the same bytes in writes of 64,000.
CPU is user plus system time of both processes, per unit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from aimo_node.domain.answer import Finish
from aimo_node.domain.ids import Endpoint, PeerId, RequestId, Role
from aimo_node.domain.join import peer_of_address
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import OutgoingRequest
from aimo_node.protocol.frames import Subscribe
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Announcement
from aimo_node.telemetry.logs import configure_logging
from benchmarks.machine import describe_machine
from benchmarks.processes import used

LONE_BYTES = 200
CHUNK_BYTES = 100
STREAMS = 32


@contextmanager
def far_end(kind: str, folder: Path) -> Iterator[tuple[int, str]]:
    """The other process: its pid and address."""
    command = [sys.executable, "-m", "benchmarks.link_child", kind, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


async def quiet(_stream: object) -> None:
    """This side accepts nothing."""


async def raw(folder: Path, address: str, rounds: int, megabytes: int) -> tuple[float, float]:
    """Round trips in µs, then seconds for the bulk."""
    identity = load_identity(folder / "near.pem")
    async with MeshHost(identity, [], limits=HostLimits(), on_stream=quiet) as host:
        stream = await host.dial(peer_of_address(address), [address])
        trips = []
        for _ in range(rounds):
            started = time.perf_counter()
            await stream.write(b"x" * LONE_BYTES)
            got = 0
            while got < LONE_BYTES:
                got += len(await stream.read(65_536))
            trips.append(time.perf_counter() - started)
        block, total = b"x" * 64_000, megabytes * 1_000_000 // 64_000 * 64_000
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pour, stream.write, block, total)
            got = 0
            while got < total:
                got += len(await stream.read(65_536))
        return statistics.median(trips), time.perf_counter() - started


async def _pour(write: Callable[[bytes], Awaitable[None]], block: bytes, total: int) -> None:
    for _ in range(total // len(block)):
        await write(block)


@dataclass(frozen=True, slots=True)
class Linked:
    """Seconds: a lone frame and back, a request of one chunk, all the chunks, dial and Hello."""

    lone: float
    request: float
    chunks: float
    dial: float


class Answered(IdleObserver):
    """Waits for the answer to a lone frame."""

    def __init__(self) -> None:
        self._here = trio.Event()

    async def trip(self, link: Link) -> None:
        """One frame there and one back."""
        self._here = trio.Event()
        link.announce(Subscribe())
        await self._here.wait()

    def announced(self, link: Link, frame: Announcement) -> None:
        """The answer."""
        self._here.set()


async def linked(folder: Path, address: str, rounds: int, chunks: int) -> Linked:
    """Measure a link to the far end."""
    identity = load_identity(folder / "near.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.EDGE))
    answered = Answered()
    network.add_observer(answered)
    host = MeshHost(identity, [], limits=HostLimits(), on_stream=network.accept)
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        await network.running.wait()
        peer = peer_of_address(address)
        network.remember(peer, [address])
        started = time.perf_counter()
        link = await network.connect(peer)
        dial = time.perf_counter() - started
        lone = []
        for _ in range(rounds):
            started = time.perf_counter()
            await answered.trip(link)
            lone.append(time.perf_counter() - started)
        whole = []
        for _ in range(rounds):
            started = time.perf_counter()
            await ask(network, peer, 1)
            whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        async with trio.open_nursery() as streams:
            for _ in range(STREAMS):
                streams.start_soon(ask, network, peer, chunks // STREAMS)
        took = time.perf_counter() - started
        await network.close()
        nursery.cancel_scope.cancel()
    return Linked(statistics.median(lone), statistics.median(whole), took, dial)


async def ask(network: MeshNetwork, peer: PeerId, count: int) -> None:
    """One request for `count` chunks, read to its end."""
    request = OutgoingRequest(
        RequestId(uuid.uuid4().bytes), Endpoint.CHAT, b"%d" % count, stream=True, deadline_ms=60_000
    )
    exchange = await network.open_exchange(peer, request)
    received = 0
    while True:
        parts = await exchange.receive()
        received += len(parts)
        if isinstance(parts[-1], Finish):
            break
    exchange.cancel()
    if received != count + 1:
        sys.exit(f"{received - 1} chunks arrived, {count} were sent")


def main() -> None:
    """Measure both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2_000, help="lone round trips")
    parser.add_argument("--chunks", type=int, default=320_000, help="queued chunks")
    options = parser.parse_args()
    configure_logging("warning", "text")
    print(describe_machine())
    megabytes = options.chunks * CHUNK_BYTES // 1_000_000
    with tempfile.TemporaryDirectory(prefix="aimo-link-") as temporary:
        folder = Path(temporary)
        with far_end("raw", folder) as (_, address):
            raw_trip, raw_seconds = trio.run(raw, folder, address, options.rounds, megabytes)
        with far_end("link", folder) as (pid, address):
            before, own = used(pid).cpu_seconds, time.process_time()
            seen = trio.run(linked, folder, address, options.rounds, options.chunks)
            far_cpu, near_cpu = used(pid).cpu_seconds - before, time.process_time() - own
    rate = options.chunks / seen.chunks
    raw_rate = megabytes * 1e6 / raw_seconds
    print(f"{'':34}{'link':>12}{'raw libp2p':>12}{'ratio':>8}")
    for name, took in (("lone frame and back", seen.lone), ("request of one chunk", seen.request)):
        label = f"{name}, µs"
        print(f"{label:34}{took * 1e6:12.0f}{raw_trip * 1e6:12.0f}{took / raw_trip:8.2f}")
    bulk = rate * CHUNK_BYTES
    label = "100 B chunks that queue, MB/s"
    print(f"{label:34}{bulk / 1e6:12.1f}{raw_rate / 1e6:12.1f}{bulk / raw_rate:8.2f}")
    print(f"{'the same, chunks/s':34}{rate:12.0f}")
    near_us, far_us = (cpu / options.chunks * 1e6 for cpu in (near_cpu, far_cpu))
    print(f"{'CPU µs per chunk, near and far end':34}{near_us:12.2f}{far_us:12.2f}")
    print(f"{'dial and Hello, ms':34}{seen.dial * 1e3:12.1f}")


if __name__ == "__main__":
    main()
