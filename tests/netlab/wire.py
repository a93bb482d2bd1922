"""A wire between two network namespaces that delays and loses packets: a process of its own (root).

    python -m tests.netlab.wire NAMESPACE1 DEVICE1 NAMESPACE2 DEVICE2 --delay-ms 25 25 --loss 0 0.01

The kernels this runs on often lack netem, so both ends are TAP devices and this program carries
what comes out of one into the other. Delay and loss are given for each direction, there and back.
The delay is constant and the order is kept; which packets are lost follows from the seed and the
order in which they come. It says `ready` when both devices are there, and ends, and the devices
with it, when its standard input does.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMESPACES = Path("/run/netns")
TUN_DEVICE = Path("/dev/net/tun")

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000

PACKET_BYTES_MAX = 65_536
BURST_PACKETS = 64
"""Taken from one device before the other gets its turn."""
ON_THE_WAY_BYTES_MAX = 16 * 1024 * 1024
"""One direction of 25 ms at 5 Gbit/s; what comes on top is dropped, as by a router."""
READY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a wire is in each direction.

    Attributes:
        delay_ms: added to each packet.
        loss: the share of packets that vanish, 0 to 1.
        seed: which ones.
    """

    delay_ms: float = 0.0
    loss: float = 0.0
    seed: int = 1


class Direction:
    """Packets on their way from one device to the other, oldest first."""

    def __init__(self, source: int, sink: int, delay_seconds: float, lost: Iterable[bool]) -> None:
        self._source = source
        self._sink = sink
        self._delay = delay_seconds
        self._lost = iter(lost)
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0

    @property
    def due(self) -> float | None:
        """When the next packet arrives; None if none is on its way."""
        return self._waiting[0][0] if self._waiting else None

    def take(self) -> None:
        """Take what has come out of the source, a burst at most."""
        arrival = time.monotonic() + self._delay
        for _ in range(BURST_PACKETS):
            try:
                packet = os.read(self._source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            if next(self._lost) or self._waiting_bytes > ON_THE_WAY_BYTES_MAX:
                continue
            self._waiting.append((arrival, packet))
            self._waiting_bytes += len(packet)

    def deliver(self) -> None:
        """Put into the sink what is due; one that is down or full loses it."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, packet = self._waiting.popleft()
            self._waiting_bytes -= len(packet)
            with suppress(OSError):
                os.write(self._sink, packet)


def losses(share: float, seed: int) -> Iterable[bool]:
    """For one packet after the other, whether it is lost."""
    chance = random.Random(seed)
    while True:
        yield share > 0 and chance.random() < share


def carry(directions: tuple[Direction, Direction], sources: tuple[int, int], end: int) -> None:
    """Until `end` is closed from the other side."""
    while True:
        due = [moment for one in directions if (moment := one.due) is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([*sources, end], [], [], wait)
        if end in ready:
            return
        for source, direction in zip(sources, directions, strict=True):
            if source in ready:
                direction.take()
            direction.deliver()


def open_tap(namespace: str, device: str) -> int:
    """A new TAP device in a namespace; it lives as long as the descriptor."""
    library = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        if library.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
            flags = IFF_TAP | IFF_NO_PI
            fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        finally:
            library.setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(there)
    return descriptor


class Wire:
    """The program above as a child of this one."""

    def __init__(self, one: tuple[str, str], two: tuple[str, str], quality: Quality) -> None:
        """`one` and `two` are namespace and device; both directions get the same quality."""
        twice = [(str(value), str(value)) for value in (quality.delay_ms, quality.loss)]
        command = [sys.executable, "-m", "tests.netlab.wire", *one, *two]
        command += ["--delay-ms", *twice[0], "--loss", *twice[1], "--seed", str(quality.seed)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], READY_SECONDS)
        said = self._process.stdout.readline() if readable else ""
        if said != "ready\n":
            self.close()
            raise AssertionError("the wire between the namespaces does not work")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """Take it down; its devices are gone afterwards."""
        self._process.communicate()


def main() -> None:
    """Carry packets until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("namespace1", "device1", "namespace2", "device2"):
        parser.add_argument(name)
    parser.add_argument("--delay-ms", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--loss", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    one = open_tap(options.namespace1, options.device1)
    two = open_tap(options.namespace2, options.device2)
    there, back = (delay / 1000 for delay in options.delay_ms)
    lost_there, lost_back = (
        losses(share, options.seed + number) for number, share in enumerate(options.loss)
    )
    directions = Direction(one, two, there, lost_there), Direction(two, one, back, lost_back)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(directions, (one, two), sys.stdin.fileno())


if __name__ == "__main__":
    main()
