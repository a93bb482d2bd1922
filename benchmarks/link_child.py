"""The far end of `benchmarks.link`: an echo over a raw libp2p stream, or a provider on a link."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import FinishReason, Role
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import IncomingRequest
from aimo_node.protocol.frames import Directory
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Announcement

CHUNK = "x" * 100


async def serve(incoming: IncomingRequest) -> None:
    """Send as many chunks of 100 bytes as the body says."""
    count = int(await incoming.read_body())
    incoming.accept()
    for index in range(count):
        incoming.send_text(CHUNK)
        if incoming.backlog_bytes > 65_536:
            await incoming.wait_backlog_below(32_768)
        elif not index % 64:
            await trio.lowlevel.checkpoint()
    incoming.finish(Finish(FinishReason.STOP, Usage()))


class Answerer(IdleObserver):
    """Answers each lone frame with one."""

    def announced(self, link: Link, frame: Announcement) -> None:
        """A Subscribe is answered by an empty Directory."""
        link.announce(Directory(full=False))


async def echo(stream: LinkStream) -> None:
    """Send back what comes."""
    while data := await stream.read(65_536):
        for start in range(0, len(data), 64_000):
            await stream.write(data[start : start + 64_000])


async def main() -> None:
    """Listen and print the address."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    identity = load_identity(folder / "far.pem")
    network = MeshNetwork(Admission(identity.peer_id, None, Role.PROVIDER), serve)
    network.add_observer(Answerer())
    handler = echo if kind == "raw" else network.accept
    host = MeshHost(identity, ["/ip4/127.0.0.1/tcp/0"], limits=HostLimits(), on_stream=handler)
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        print(host.addresses()[0], flush=True)
        await trio.sleep_forever()


trio.run(main)
