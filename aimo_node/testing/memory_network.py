"""A mesh in memory: the real links and sessions, over pipes instead of libp2p.

Every node is a `MeshNetwork`; dialling hands the other end of a pipe to the other network. Links
can be cut, and nodes taken away, at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import NetworkError
from aimo_node.mesh.link import ByteStream
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.pipe import open_pipe
from aimo_node.ports.peer_network import RequestHandler
from aimo_node.protocol.handshake import Admission


class MemoryMesh:
    """Networks that can dial each other. `nursery` keeps them running."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._nodes: dict[PeerId, MeshNetwork] = {}
        self.dials: list[tuple[PeerId, PeerId]] = []
        """Who dialled whom, in order."""

    async def add(
        self,
        name: str,
        roles: Role = Role.NONE,
        handler: RequestHandler | None = None,
        *,
        secret: bytes | None = None,
    ) -> MeshNetwork:
        """A running node; everybody knows its address."""
        peer = PeerId(name)
        network = MeshNetwork(Admission(peer, secret, roles, agent="memory"), handler)
        self._nodes[peer] = network
        self._nursery.start_soon(network.run, _MemoryDialer(self, peer))
        await network.running.wait()
        for other in self._nodes.values():
            other.remember(peer, [f"/memory/{name}"])
            network.remember(other.peer, [f"/memory/{other.peer}"])
        return network

    def remove(self, peer: PeerId) -> None:
        """Kill a node: all its links end at once, and nobody can dial it."""
        network = self._nodes.pop(peer)
        for link in network.links():
            self._nursery.start_soon(link.stream.reset)

    def open_stream(self, source: PeerId, target: PeerId) -> ByteStream:
        """One end of a pipe; the other is accepted by `target`.

        Raises:
            NetworkError: there is no such node.
        """
        network = self._nodes.get(target)
        if network is None or source not in self._nodes:
            raise NetworkError(f"nobody listens at /memory/{target}")
        self.dials.append((source, target))
        near, far = open_pipe(source, target)
        self._nursery.start_soon(network.accept, far)
        return near


class _MemoryDialer:
    """Dials for one node."""

    def __init__(self, mesh: MemoryMesh, own: PeerId) -> None:
        self._mesh = mesh
        self._own = own

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> ByteStream:
        """Open a pipe to the peer."""
        await trio.lowlevel.checkpoint()
        return self._mesh.open_stream(self._own, peer)

    async def disconnect(self, peer: PeerId) -> None:
        """A pipe has no connection besides its stream."""
        await trio.lowlevel.checkpoint()
