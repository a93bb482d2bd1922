"""The parties of the libp2p tests: nodes in child processes, and hosts in this one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("libp2p_child.py")

START_SECONDS_MAX = 20
"""What a child may take to print its first line, on a machine that does much else."""


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
                [
                    sys.executable,
                    str(SCRIPT),
                    json.dumps({"listen": [listen], "key": key, **options}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        child = Child(process, errors)
        try:
            with trio.fail_after(START_SECONDS_MAX):
                hello = await child.next_line()
            child.peer, child.addresses = hello["peer"], hello["addresses"]
            yield child
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()


async def ignore(stream) -> None:
    """Take no streams."""


@asynccontextmanager
async def node(limits=None, listen=(), seed=b"n" * 32, on_stream=ignore) -> AsyncIterator[MeshHost]:
    """A host of this process."""
    identity = KeyPair.from_seed(seed)
    limits = limits or HostLimits()
    async with MeshHost(identity, listen, limits=limits, on_stream=on_stream) as host:
        yield host


async def answers(host: MeshHost, child) -> bool:
    """Whether a new stream to the child works from end to end."""
    with trio.fail_after(5):
        stream = await host.dial(child.peer, child.addresses)
        await stream.write(b"E" + b"hello")
        echoed = b""
        while len(echoed) < 5:
            echoed += await stream.read()
        await stream.close()
    return echoed == b"hello"


async def read_exactly(stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        assert more, "the stream ended early"
        data += more
    return data
