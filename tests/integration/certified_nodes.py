"""Nodes of a mesh with an authority, in the test's own process; the clock is the test's as well."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, Certificate
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from aimo_node.mesh.membership.members import MEMBERS_PROTOCOL, Members
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import IncomingRequest
from aimo_node.protocol.certificates import seal_certificate
from aimo_node.store.members import SqliteMemberStore

LISTEN = "/ip4/127.0.0.1/tcp/0"
START_MS = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000


class Clock:
    """Wall time that stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


class Heard(IdleObserver):
    """Remembers announcements."""

    def __init__(self) -> None:
        self.frames: list[object] = []

    def announced(self, link, frame) -> None:
        self.frames.append(frame)


async def never_asked(request: IncomingRequest) -> None:
    raise AssertionError(f"{request} got through")


class Node:
    """Host, links and membership of one node; everything but its roles' work."""

    def __init__(self, mesh: Mesh, name: str, roles: Role, authority: Authority | None) -> None:
        self.clock = mesh.clock
        self.identity = KeyPair.from_seed(name.encode().ljust(32, b"."))
        self.peer = self.identity.peer_id
        folder = mesh.folder / name
        self.credential = Credential(
            mesh.key.public_key, self.peer, roles, folder, clock_ms=lambda: self.clock.ms
        )
        self.members = Members(self.credential, authority, is_relay=Role.RELAY in roles)
        self.network = MeshNetwork(self.credential, never_asked)
        self.heard = Heard()
        self.network.add_observer(self.members)
        self.network.add_observer(self.heard)
        self.host = MeshHost(
            self.identity, [LISTEN], limits=HostLimits(), on_stream=self.network.accept
        )
        self.roles = roles
        self._authority = authority

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        async with self.host, trio.open_nursery() as nursery:
            self.host.serve(MEMBERS_PROTOCOL, self.members.serve)
            nursery.start_soon(self.network.run, self.host)
            nursery.start_soon(self.members.run, self.host, self.network)
            await self.network.running.wait()
            yield self
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await self.network.close()
            nursery.cancel_scope.cancel()

    async def join(self, at: Node, invite: bytes) -> None:
        home = Home(
            {at.peer: at.host.addresses()},
            invite,
            frozenset({at.peer}),
            self._authority,
            self.roles,
        )
        enrolment = Enrolment(home, self.credential, self.members, random.Random(1))
        await enrolment.obtain(self.host)

    async def connect(self, other: Node) -> None:
        self.network.remember(other.peer, other.host.addresses())
        await self.network.connect(other.peer)


class Mesh:
    """An authority's key, its book, its clock, and nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.key = KeyPair.from_seed(b"k" * 32)
        store = SqliteMemberStore(folder / "members.sqlite")
        self.authority = Authority(self.key, store, self.clock)
        self.relay = Node(self, "relay", Role.RELAY, self.authority)

    def node(self, name: str, roles: Role) -> Node:
        return Node(self, name, roles, None)

    async def invite(self, roles: Role = Role.PROVIDER | Role.EDGE, uses: int = 1) -> bytes:
        return await self.authority.invite(roles, DAY_MS, uses)

    def certificate(self, peer: PeerId, **changes: object) -> bytes:
        """Signed by the authority, whatever it says."""
        fields = {
            "mesh": self.key.public_key,
            "peer": peer,
            "roles": Role.PROVIDER | Role.EDGE,
            "serial": 1,
            "issued_ms": self.clock.ms,
            "expires_ms": self.clock.ms + CERTIFICATE_MS,
        }
        certificate = Certificate(**(fields | changes))  # type: ignore[arg-type]
        return seal_certificate(certificate, partial(sign, self.key))
