"""A `MeshHost` in a process of its own, and how tests start one.

Run as a script it prints one JSON line with its addresses; the first byte a peer sends on a
stream says what is to be done with the rest. Imported, it offers `start_child`.
"""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

ROOT = Path(__file__).parents[2]
COUNT = struct.Struct("!Q")
LEAD = 12
"""Seconds a child may take to print its first line, on a machine that does much else."""


async def serve_stream(stream) -> None:
    """Do what the first byte says: Echo, Sink, Numbers, Pause, eXplode."""
    received = await stream.read(1)
    match received:
        case b"E":
            while data := await stream.read():
                await stream.write(data)
        case b"S":
            await _report(stream)
        case b"N":
            number = 0
            while True:
                await stream.write(COUNT.pack(number) * 100)
                number += 1
                await trio.sleep(0.001)
        case b"P":
            (seconds,) = COUNT.unpack(await _exactly(stream, COUNT.size))
            await trio.sleep(seconds)
            await _report(stream)
        case b"X":
            raise RuntimeError("this handler always fails")


async def _report(stream) -> None:
    """Read the announced number of bytes, answer with their digest."""
    (expected,) = COUNT.unpack(await _exactly(stream, COUNT.size))
    digest = hashlib.sha256()
    while expected:
        data = await stream.read(min(expected, 65536))
        if not data:
            return
        expected -= len(data)
        digest.update(data)
    await stream.write(digest.digest())


async def _exactly(stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


async def run_host(options: dict) -> None:
    """Run a host until killed; with a topic also gossip, driven by lines on stdin."""
    import structlog

    from aimo_node.mesh.host import HostLimits, MeshHost
    from aimo_node.mesh.identity import load_identity

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    identity = load_identity(Path(options["key"]))
    limits = HostLimits(**options.get("limits", {}))
    host = MeshHost(identity, options["listen"], limits=limits, on_stream=serve_stream)
    async with host:
        if "topic" in options:
            await _run_gossip(host, options)
        else:
            _say({"peer": host.peer_id, "addresses": host.addresses()})
            await trio.sleep_forever()


async def _run_gossip(host, options: dict) -> None:
    from aimo_node.errors import AimoError
    from aimo_node.mesh.gossip import Gossip

    refused = set(options.get("refused", ()))
    topic = options["topic"]
    async with Gossip(host, accepts=lambda peer: peer not in refused) as gossip:
        await gossip.subscribe(topic)
        for address in options.get("dial", ()):
            await host.dial(address.rpartition("/")[2], [address])
        _say({"peer": host.peer_id, "addresses": host.addresses()})
        async with trio.open_nursery() as nursery:

            async def print_messages() -> None:
                while True:
                    message = await gossip.receive()
                    _say({"from": message.from_peer, "data": message.data.decode()})

            nursery.start_soon(print_messages)
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                command = json.loads(line)
                if "wait_for" in command:
                    wanted = command["wait_for"]
                    await eventually(lambda: len(gossip.neighbours(topic)) >= wanted, 10)  # noqa: B023 (awaited here)
                try:
                    for text in command.get("publish", ()):
                        await gossip.publish(topic, text.encode())
                    _say({"done": True})
                except AimoError as error:
                    _say({"error": type(error).__name__})


def _say(message: dict) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 (the parent reads it)


async def eventually(condition: Callable[[], bool], seconds_max: float) -> None:
    """Poll until `condition` holds: other processes send no events."""
    with trio.fail_after(seconds_max):
        while not condition():  # noqa: ASYNC110 (for that reason)
            await trio.sleep(0.02)


class Child:
    """A running child process, seen from the test."""

    def __init__(self, process: trio.Process, errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.peer = ""
        self.addresses: list[str] = []
        self._buffer = b""

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self.addresses[0].split("/")[4])

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    async def next_line(self) -> dict:
        """The next JSON line it prints."""
        while b"\n" not in self._buffer:
            more = await self.process.stdout.receive_some(65536)
            if not more:
                raise AssertionError(f"the child ended: {self.errors.read_text()[-2000:]}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def command(self, **command) -> dict:
        """Send a command and return the answer, passing over messages."""
        await self.process.stdin.send_all(json.dumps(command).encode() + b"\n")
        while True:
            answer = await self.next_line()
            if "from" not in answer:
                return answer


@asynccontextmanager
async def start_child(listen: str = "/ip4/127.0.0.1/tcp/0", **options) -> AsyncIterator[Child]:
    """Start a child and wait until it listens; it is killed at the end, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        key = options.pop("key", str(Path(folder) / "key"))
        errors = Path(folder) / "stderr"
        with errors.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, __file__, json.dumps({"listen": [listen], "key": key, **options})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        child = Child(process, errors)
        try:
            with trio.fail_after(LEAD):
                hello = await child.next_line()
            child.peer, child.addresses = hello["peer"], hello["addresses"]
            yield child
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()


if __name__ == "__main__":
    trio.run(run_host, json.loads(sys.argv[1]))
