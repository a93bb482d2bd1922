"""A stream through a relay's circuit against a direct one: three processes, in one run.

    python -m benchmarks.circuit

Round trip: 200 bytes echoed. Throughput: what the far end pours in writes of 64,000. CPU is user
plus system time of each process, per megabyte.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.join import peer_of_address
from aimo_node.mesh.circuits.client import Circuits, relays_in
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol.handshake import Admission
from aimo_node.telemetry.logs import configure_logging
from benchmarks.machine import describe_machine
from benchmarks.processes import used

LONE_BYTES = 200
BLOCK = b"x" * 64_000
NO_BOUND = CircuitLimits(member_bytes_per_second=1e12)
LISTEN = ["/ip4/127.0.0.1/tcp/0"]


async def serve(stream: LinkStream) -> None:
    """The far end: the first byte says whether to echo or to pour without end."""
    if await stream.read(1) == b"E":
        while data := await stream.read(60_000):
            await stream.write(data)
    else:
        while True:
            await stream.write(BLOCK)


async def be_relay(folder: Path) -> None:
    """Carry circuits until killed."""
    identity = load_identity(folder / "relay.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.RELAY))
    host = MeshHost(identity, LISTEN, limits=HostLimits(), on_stream=network.accept)
    async with host, trio.open_nursery() as nursery:
        relay = CircuitRelay(host, network, lambda: tuple(host.addresses()), NO_BOUND)
        relay.start()
        nursery.start_soon(network.run, host)
        print(json.dumps(host.addresses()), flush=True)
        await trio.sleep_forever()


async def be_far(folder: Path, relay: str) -> None:
    """Reserve at the relay, print the direct and the circuit address, and serve until killed."""
    identity = load_identity(folder / "far.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.PROVIDER))
    host = MeshHost(identity, LISTEN, limits=HostLimits(), on_stream=serve)
    reserved = trio.Event()
    circuits = Circuits(host, network, [peer_of_address(relay)], changed=reserved.set)
    network.add_observer(circuits)
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        nursery.start_soon(circuits.run)
        await network.running.wait()
        network.remember(peer_of_address(relay), [relay])
        await network.connect(peer_of_address(relay))
        await reserved.wait()
        print(json.dumps([*host.addresses(), *circuits.addresses()]), flush=True)
        await trio.sleep_forever()


@contextmanager
def child(kind: str, folder: Path, *more: str) -> Iterator[tuple[int, list[str]]]:
    """Another process: its pid and addresses."""
    command = [sys.executable, "-m", "benchmarks.circuit", kind, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def measure(stream: LinkStream, rounds: int) -> list[float]:
    """Round trips in µs."""
    await stream.write(b"E")
    trips = []
    for _ in range(rounds):
        started = time.perf_counter()
        await stream.write(b"x" * LONE_BYTES)
        got = 0
        while got < LONE_BYTES:
            got += len(await stream.read())
        trips.append((time.perf_counter() - started) * 1e6)
    await stream.reset()
    return trips


async def pour(stream: LinkStream, megabytes: int) -> float:
    """MB/s from the far end."""
    await stream.write(b"P")
    started, got = time.perf_counter(), 0
    while got < megabytes * 1_000_000:
        got += len(await stream.read())
    seconds = time.perf_counter() - started
    await stream.reset()
    return got / 1e6 / seconds


async def run(folder: Path, rounds: int, megabytes: int) -> None:
    """Both ways, one after the other."""
    with triangle(folder) as (pids, relay, far):
        async with near_end(folder, "near", relay) as near:
            for way, address in (("circuit", far[-1]), ("direct", far[0])):
                print(f"{way:8} {await near.measure(address, rounds, megabytes, pids)}")


@contextmanager
def triangle(folder: Path) -> Iterator[tuple[tuple[int, int], str, list[str]]]:
    """A relay and a far end: their pids, the relay's address, the far end's, its circuit last."""
    with (
        child("relay", folder) as (relay_pid, (relay, *_)),
        child("far", folder, relay) as (far_pid, addresses),
    ):
        yield (relay_pid, far_pid), relay, addresses


@asynccontextmanager
async def near_end(folder: Path, name: str, relay: str) -> AsyncIterator[Near]:
    """A node of this process that has a link to the relay."""
    identity = load_identity(folder / f"{name}.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.EDGE))
    host = MeshHost(identity, [], limits=HostLimits(), on_stream=network.accept)
    circuits = Circuits(host, network, [], changed=lambda: None, reservations_max=0)
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        await network.running.wait()
        network.remember(peer_of_address(relay), [relay])
        await network.connect(peer_of_address(relay))
        yield Near(host, circuits)
        nursery.cancel_scope.cancel()


@dataclass(frozen=True)
class Near:
    """The end that measures."""

    host: MeshHost
    circuits: Circuits

    async def open(self, address: str) -> LinkStream:
        """A stream to the far end, over the connection there is or a new one to `address`."""
        far = PeerId(address.rpartition("/p2p/")[2])
        if far in self.host.connected_peers() or "/p2p-circuit/" not in address:
            return await self.host.dial(far, [address])
        ((relay, places),) = relays_in([address], far).items()
        return await self.circuits.dial(far, relay, places)

    async def measure(
        self, address: str, rounds: int, megabytes: int, pids: tuple[int, int]
    ) -> str:
        """One way, in words."""
        started = time.perf_counter()
        stream = await self.open(address)
        dial_ms = (time.perf_counter() - started) * 1e3
        trip = statistics.median(await measure(stream, rounds))
        before = [used(pid).cpu_seconds for pid in pids]
        speed = await pour(await self.open(address), megabytes)
        relay_cpu, far_cpu = (
            (used(pid).cpu_seconds - cpu) * 1e3 / megabytes
            for pid, cpu in zip(pids, before, strict=True)
        )
        await self.host.disconnect(PeerId(address.rpartition("/p2p/")[2]))
        return (
            f"dial {dial_ms:6.1f} ms   round trip p50 {trip:6.0f} µs   {speed:6.1f} MB/s   "
            f"CPU ms per MB: relay {relay_cpu:.1f}, far end {far_cpu:.1f}"
        )


def main() -> None:
    """Measure, or be one of the other processes."""
    configure_logging("error", "text")
    if len(sys.argv) > 2 and sys.argv[1] in {"relay", "far"}:
        kind = be_relay if sys.argv[1] == "relay" else be_far
        trio.run(kind, Path(sys.argv[2]), *sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder), options.rounds, options.megabytes)


if __name__ == "__main__":
    main()
