"""The far end of `benchmarks.link`: nodes in a process of their own, each a provider on a link, and
an echo and a source on libp2p's bare stream."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from struct import Struct
from typing import Final

import trio

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import ContentType, FinishReason, Role
from aimo_node.domain.join import peer_of_address
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import IncomingRequest
from aimo_node.protocol.frames import Receipt
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Announcement
from benchmarks.processes import collect_as_a_node

LISTEN: Final = ["/ip4/127.0.0.1/tcp/0"]
ECHO_PROTOCOL: Final = "/aimo/bench/echo/1"
POUR_PROTOCOL: Final = "/aimo/bench/pour/1"
POUR_ORDER: Final = Struct("!Q")
"""What the near end writes to have so many bytes poured."""
BLOCK: Final = b"x" * 64_000
CHUNK: Final = "x" * 100
BODY_BYTES: Final = 8_000_000
"""A bulk answer: close to the largest there is."""
BODY: Final = b"x" * BODY_BYTES


async def serve(incoming: IncomingRequest) -> None:
    """Send as many chunks of 100 bytes as the body says; for `bulk` answer as a whole."""
    order = await incoming.read_body()
    incoming.accept()
    done = Finish(FinishReason.STOP, Usage())
    if order == b"bulk":
        incoming.respond(ContentType.JSON, BODY, done)
        return
    for index in range(int(order)):
        incoming.send_text(CHUNK)
        if incoming.backlog_bytes > 65_536:
            await incoming.wait_backlog_below(32_768)
        elif not index % 64:
            await trio.lowlevel.checkpoint()
    incoming.finish(done)


class Answerer(IdleObserver):
    """Answers each lone frame with the same."""

    def announced(self, link: Link, frame: Announcement) -> None:
        """A Receipt goes back."""
        if isinstance(frame, Receipt):
            link.announce(frame)


async def echo(stream: LinkStream) -> None:
    """Send back what comes."""
    while data := await stream.read(64_000):
        await stream.write(data)


async def pour(stream: LinkStream) -> None:
    """Send as many bytes as each order says, in writes of 64,000."""
    while order := await stream.read(POUR_ORDER.size):
        (left,) = POUR_ORDER.unpack(order)
        while left:
            await stream.write(BLOCK[:left])
            left -= min(left, len(BLOCK))


async def main(folder: Path, count: int, near: str = "") -> None:
    """Run `count` nodes and print their addresses; have each link to `near`, if that is named."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        addresses = []
        for number in range(count):
            identity = load_identity(folder / f"far-{number}.pem")
            network = MeshNetwork(Admission(identity.peer_id, None, Role.PROVIDER), serve)
            network.add_observer(Answerer())
            host = MeshHost(identity, LISTEN, limits=HostLimits(), on_stream=network.accept)
            await stack.enter_async_context(host)
            host.serve(ECHO_PROTOCOL, echo)
            host.serve(POUR_PROTOCOL, pour)
            nursery.start_soon(network.run, host)
            if near:
                await network.running.wait()
                network.remember(peer_of_address(near), [near])
                await network.connect(peer_of_address(near))
            addresses.append(host.addresses()[0])
        collect_as_a_node()
        print(json.dumps(addresses), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
