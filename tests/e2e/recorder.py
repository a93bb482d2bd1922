"""Somebody on the wire: passes TCP connections on to a port here, and notes every byte."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from aimo_node.domain.join import format_join, parse_join
from tests.e2e.mesh import Mesh, until_known
from tests.e2e.node_process import NodeProcess

READ_BYTES = 65_536


class Recorder:
    """What went by.

    Attributes:
        port: where it listens.
        seen: for each connection and direction what was sent, in order.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.seen: list[bytearray] = []
        self._target_port = target_port

    @property
    def size(self) -> int:
        """How many bytes went by."""
        return sum(map(len, self.seen))

    def found(self, *needles: bytes) -> set[bytes]:
        """Those of the needles that went by on one connection in one direction, unbroken."""
        return {needle for needle in needles for data in self.seen if needle in data}

    async def pass_on(self, near: trio.SocketStream) -> None:
        """Serve one connection until both ends have finished or one has gone."""
        far = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far)
            nursery.start_soon(self._pump, far, near)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        data = bytearray()
        self.seen.append(data)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                data += piece
                await sink.send_all(piece)
            await sink.send_eof()


@asynccontextmanager
async def recording(target_port: int) -> AsyncIterator[Recorder]:
    """A recorder in front of a port of this machine."""
    recorder = Recorder(target_port)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, host="127.0.0.1")
        (listener,) = await nursery.start(serve, recorder.pass_on, 0)
        recorder.port = listener.socket.getsockname()[1]
        yield recorder
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def recorded_ends(
    mesh: Mesh, relay: NodeProcess, *flags: str
) -> AsyncIterator[tuple[Recorder, NodeProcess, NodeProcess]]:
    """A provider of ``echo`` and an edge that reach the relay through a recorder, and each other
    through the relay only: they listen nowhere, and the relay cannot tell where they come from."""
    async with recording(int(relay.ready_line["listen"][0].split("/")[4])) as recorder:
        place = f"/ip4/127.0.0.1/tcp/{recorder.port}/p2p/{relay.peer_id}"
        target = replace(parse_join(relay.ready_line["join"]), addresses=(place,))
        common = ("--join", format_join(target), "--listen", "off", *flags)
        what = ("--engine", "echo", "--model", "echo")
        provider = mesh.start("provider", "provider", *what, *common)
        edge = mesh.start("edge", "edge", "--http", "127.0.0.1:0", *common)
        await edge.ready()
        await until_known(edge, provider)
        yield recorder, provider, edge
