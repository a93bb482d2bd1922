"""Relays and members of a mesh, each a real host with real links on loopback, in one process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import Endpoint, FinishReason, PeerId, RequestId, Role
from aimo_node.mesh.circuits.client import Circuits
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.paths import Paths
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.circuits.upgrades import Upgrades
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.network import MeshNetwork
from aimo_node.ports.peer_network import IncomingRequest, OutgoingRequest
from aimo_node.protocol.handshake import Admission

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
SECRET = b"s" * 32
SETTLED_SECONDS = 20.0
"""A moment, where there is time; but a relay that refused or was late is asked again after 5 s."""


async def pour(incoming: IncomingRequest) -> None:
    """Answers as many pieces of 1,000 bytes as the body says, as fast as they are taken."""
    count = int(await incoming.read_body())
    incoming.accept()
    for index in range(count):
        await incoming.wait_backlog_below(200_000)
        incoming.send_text(f"{index:06d}" + "x" * 994)
    incoming.finish(Finish(FinishReason.STOP, Usage(1, count)))


class Party:
    """A node's host, links and circuits."""

    def __init__(
        self,
        name: str,
        roles: Role = Role.NONE,
        *,
        listen=(),
        relays=(),
        limits=None,
        reservations_max=1,
        relay_class=CircuitRelay,
        secret=SECRET,
        upgrades=False,
    ):
        identity = KeyPair.from_seed(name.encode().ljust(32, b"-"))
        self.peer = identity.peer_id
        self.network = MeshNetwork(Admission(self.peer, secret, roles, agent="test"), pour)
        self.host = MeshHost(identity, listen, limits=HostLimits(), on_stream=self.network.accept)
        self.told = [relay.peer for relay in relays]
        self.changes = 0
        self.circuits = Circuits(
            self.host,
            self.network,
            self.told,
            changed=self._note_change,
            reservations_max=0 if Role.RELAY in roles else reservations_max,
        )
        self.network.add_observer(self.circuits)
        self.upgrades = Upgrades(self.host, self.network, self.addresses) if upgrades else None
        if self.upgrades is not None:
            self.network.add_observer(self.upgrades)
        self.relay = relay_class(self.host, self.network, self.addresses, limits or CircuitLimits())
        self.is_relay = Role.RELAY in roles
        self.scope = trio.CancelScope()

    def addresses(self) -> tuple[str, ...]:
        """Where others reach it."""
        return (*self.host.addresses(), *self.circuits.addresses())

    def _note_change(self) -> None:
        self.changes += 1

    async def run(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with self.host, trio.open_nursery() as nursery:
                if self.is_relay:
                    self.network.add_observer(self.relay)
                    self.relay.start()
                paths = Paths(self.host, self.circuits, seconds_max=5.0)
                nursery.start_soon(self.network.run, paths)
                await self.network.running.wait()
                nursery.start_soon(self.circuits.run)
                if self.upgrades is not None:
                    nursery.start_soon(self.upgrades.run)
                task_status.started(self)
                await trio.sleep_forever()

    async def join(self, *relays: "Party") -> None:
        """Link to relays."""
        for relay in relays:
            self.network.remember(relay.peer, relay.host.addresses())
            await self.network.connect(relay.peer)

    async def reserved(self, relay: "Party") -> None:
        """Wait for a reservation at a relay."""
        await until(lambda: relay.peer in self.circuits.relays)

    def end(self) -> None:
        """Go away without a word."""
        self.scope.cancel()

    async def ask(self, peer: PeerId, pieces: int, number: int = 1) -> list:
        """All parts of an answer."""
        request = OutgoingRequest(
            RequestId(number.to_bytes(16, "big")),
            Endpoint.CHAT,
            str(pieces).encode(),
            stream=True,
            deadline_ms=60_000,
        )
        exchange = await self.network.open_exchange(peer, request)
        parts: list = []
        while not (parts and isinstance(parts[-1], Finish)):
            parts += await exchange.receive()
        return parts


async def until(condition: Callable[[], bool]) -> None:
    """Poll until `condition` holds: sockets send no events."""
    with trio.fail_after(SETTLED_SECONDS):
        while not condition():  # noqa: ASYNC110 (for that reason)
            await trio.sleep(0.01)


@asynccontextmanager
async def parties() -> AsyncIterator[Callable]:
    """Starts parties; ends them all."""
    async with trio.open_nursery() as nursery:

        async def start(*args, **settings) -> Party:
            return await nursery.start(Party(*args, **settings).run)

        yield start
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def triangle(**settings) -> AsyncIterator[tuple[Party, Party, Party]]:
    """A relay, a provider that listens nowhere, and an edge that knows where to find it."""
    async with parties() as start:
        relay = await start("relay", Role.RELAY, listen=LOOPBACK, **settings)
        provider = await start("provider", Role.PROVIDER, relays=[relay])
        edge = await start("edge", Role.EDGE, relays=[relay])
        await provider.join(relay)
        await provider.reserved(relay)
        await edge.join(relay)
        edge.network.remember(provider.peer, provider.addresses())
        yield relay, provider, edge
