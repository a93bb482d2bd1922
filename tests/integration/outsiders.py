"""A closed mesh in one process, with an authority or with a secret, and a stranger at its doors.

The mesh has a relay (directory, circuits, gossip), a provider and an edge, all real hosts. The
stranger is a real host as well, and keeps to no manners.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, PeerId, RequestId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, BanList, Certificate
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import CloseCode, NetworkError
from aimo_node.mesh.circuits.client import Circuits
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.paths import Paths
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.directory.exchange import RelayExchange
from aimo_node.mesh.directory.relay import RelayDirectory
from aimo_node.mesh.fixes.circuit_messages import HOP_PROTOCOL
from aimo_node.mesh.host import HostLimits, LinkStream, MeshHost
from aimo_node.mesh.identity import KeyPair, sign, verifier
from aimo_node.mesh.link import Link
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.membership.members import MEMBERS_PROTOCOL, Members
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.ports.peer_network import IncomingRequest, OutgoingRequest
from aimo_node.protocol import codec, frames
from aimo_node.protocol.certificates import open_certificate, seal_bans, seal_certificate
from aimo_node.protocol.descriptors import describe
from aimo_node.protocol.handshake import Admission, Doorkeeper
from aimo_node.protocol.session import Announcement
from aimo_node.protocol.signing import descriptor_bytes_to_sign

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NOW_MS = 1_800_000_000_000
SECRET = b"s" * 32
ANSWER_SECONDS = 10.0
ANY = Role.RELAY | Role.PROVIDER | Role.EDGE


async def until(condition: Callable[[], bool], seconds: float = ANSWER_SECONDS) -> None:
    """Poll until `condition` holds: sockets send no events."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 (for that reason)
            await trio.sleep(0.01)


class Heard(IdleObserver):
    """Who was heard saying what."""

    def __init__(self) -> None:
        self.frames: list[tuple[PeerId, Announcement]] = []

    def announced(self, link: Link, frame: Announcement) -> None:
        self.frames.append((link.peer, frame))

    def kinds_from(self, peer: PeerId) -> set[type]:
        """What kinds of frames a peer was heard with."""
        return {type(frame) for sender, frame in self.frames if sender == peer}


class Resident:
    """A node that belongs to the mesh."""

    def __init__(self, name: str, roles: Role, doorkeeper: Doorkeeper, identity: KeyPair) -> None:
        self.name, self.roles, self.identity = name, roles, identity
        self.peer = identity.peer_id
        self.doorkeeper = doorkeeper
        self.network = MeshNetwork(doorkeeper, self._answer)
        self.host = MeshHost(
            identity, [LOOPBACK], limits=HostLimits(), on_stream=self.network.accept
        )
        self.heard, self.relays = Heard(), list[PeerId]()
        self.circuits = Circuits(
            self.host, self.network, self.relays, changed=lambda: None,
            reservations_max=0 if roles & Role.RELAY else 1,
        )  # fmt: skip
        self.directory = RelayDirectory(self.network)
        self.hops = CircuitRelay(self.host, self.network, self.host.addresses, CircuitLimits())
        self.consumers: list[PeerId] = []
        self.hold = trio.Event()
        self.hold.set()
        observers: list[IdleObserver] = [self.heard, self.circuits]
        if roles & Role.RELAY:
            observers += [self.directory, self.hops]
        if isinstance(doorkeeper, Credential):
            self.members = Members(doorkeeper, None, is_relay=bool(roles & Role.RELAY))
            observers.append(self.members)
        for observer in observers:
            self.network.add_observer(observer)

    async def _answer(self, request: IncomingRequest) -> None:
        self.consumers.append(request.peer)
        request.accept()
        request.send_text("hello")
        await self.hold.wait()
        request.finish(Finish(FinishReason.STOP, Usage(1, 1)))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self.host, trio.open_nursery() as nursery:
            paths = Paths(self.host, self.circuits, seconds_max=5.0)
            nursery.start_soon(self.network.run, paths)
            await self.network.running.wait()
            nursery.start_soon(self.circuits.run)
            if isinstance(self.doorkeeper, Credential):
                self.host.serve(MEMBERS_PROTOCOL, self.members.serve)
                nursery.start_soon(self.members.run, self.host, self.network)
            if self.roles & Role.RELAY:
                self.hops.start()
                exchange = RelayExchange(self.identity, self.host, self.network, self.directory)
                nursery.start_soon(exchange.run)
            task_status.started()
            await trio.sleep_forever()

    def addresses(self) -> tuple[str, ...]:
        return (*self.host.addresses(), *self.circuits.addresses())

    async def link(self, other: Resident) -> Link:
        self.network.remember(other.peer, other.host.addresses())
        return await self.network.connect(other.peer)

    def knows(self, provider: PeerId) -> bool:
        """Whether this relay would tell edges of that provider."""
        batches = self.directory.book.batches(0, frozenset())
        return any(one.node_id == provider for batch in batches for one in batch.statuses)


class World:
    """The mesh: `relay`, `provider`, `edge`. `certified`: it has an authority."""

    def __init__(self, folder: Path, *, certified: bool) -> None:
        self.folder = folder
        self.certified = certified
        self.key = KeyPair.from_seed(b"k" * 32)
        self.now_ms = NOW_MS
        self.relay = self.resident("relay", Role.RELAY)
        self.provider = self.resident("provider", Role.PROVIDER)
        self.edge = self.resident("edge", Role.EDGE)
        self.residents = [self.relay, self.provider, self.edge]

    def resident(self, name: str, roles: Role) -> Resident:
        identity = KeyPair.from_seed(name.encode().ljust(32, b"."))
        peer = identity.peer_id
        if not self.certified:
            return Resident(name, roles, Admission(peer, SECRET, roles), identity)
        folder = self.folder / name
        credential = Credential(
            self.key.public_key, peer, roles, folder, clock_ms=lambda: self.now_ms
        )
        assert credential.install(self.certificate(peer, roles=roles)) is None
        return Resident(name, roles, credential, identity)

    def certificate(self, peer: PeerId, **changes: object) -> bytes:
        """Signed by the authority, whatever it says."""
        fields = {
            "mesh": self.key.public_key,
            "peer": peer,
            "roles": ANY,
            "serial": 1,
            "issued_ms": self.now_ms,
            "expires_ms": self.now_ms + CERTIFICATE_MS,
        }
        certificate = Certificate(**(fields | changes))  # type: ignore[arg-type]
        return seal_certificate(certificate, partial(sign, self.key))

    def issued_ms(self, link: Link) -> int:
        """When the certificate was made by which the far end of a link is judged now."""
        return open_certificate(link.session.hello.proof, verifier(self.key.public_key)).issued_ms

    def ban(self, *peers: PeerId, version: int = 1) -> bytes:
        """A list of bans as the authority makes it."""
        return seal_bans(
            BanList(self.key.public_key, version, frozenset(peers)), partial(sign, self.key)
        )

    @asynccontextmanager
    async def living(self) -> AsyncIterator[World]:
        async with trio.open_nursery() as nursery:
            for one in self.residents:
                await nursery.start(one.run)
            for one in (self.provider, self.edge):
                one.relays.append(self.relay.peer)
                await one.link(self.relay)
            await until(lambda: self.relay.peer in self.provider.circuits.relays)
            for frame in described(self.provider.identity, self.provider.host.addresses()):
                self.provider.network.link(self.relay.peer).announce(frame)
            await until(lambda: self.relay.knows(self.provider.peer))
            yield self
            nursery.cancel_scope.cancel()


def described(
    identity: KeyPair, addresses: list[str]
) -> tuple[frames.Descriptor, frames.Heartbeat]:
    """What a provider says of itself."""
    body = describe(
        Descriptor(
            identity.peer_id,
            incarnation=1,
            revision=1,
            models=(ModelInfo(ModelName("m"), endpoints=(Endpoint.CHAT,)),),
            addresses=tuple(addresses),
            engine_state=EngineState.RUNNING,
        )
    )
    signature = sign(identity, descriptor_bytes_to_sign(body))
    return frames.Descriptor(body, signature), frames.Heartbeat(
        identity.peer_id, 1, 1, 0, 0, 0, 0, 0
    )


def outgoing() -> OutgoingRequest:
    """A request that a provider answers."""
    request_id = RequestId(os.urandom(16))
    return OutgoingRequest(request_id, Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000)


def question(provider: PeerId) -> frames.Request:
    """The same, as it travels."""
    return frames.Request(
        os.urandom(16), provider, int(Endpoint.CHAT), 1, 1, b"{}", 0, True, {}, 60_000, "x"
    )


class Talk:
    """One stream of the link's protocol, spoken by hand."""

    def __init__(self, stream: LinkStream) -> None:
        self.stream = stream
        self._reader = codec.FrameReader()
        self.heard: list[frames.Frame] = []

    async def say(self, *said: frames.Frame) -> None:
        """Write them all at once; the far end may have hung up."""
        with suppress(NetworkError):
            await self.stream.write(b"".join(map(codec.encode, said)))

    async def hear(self, *kinds: type[frames.Frame]) -> frames.Frame | None:
        """Read until one of these kinds arrives; None once the far end has hung up."""
        with trio.fail_after(ANSWER_SECONDS):
            while True:
                try:
                    data = await self.stream.read()
                except NetworkError:
                    return None
                if not data:
                    return None
                new = list(self._reader.feed(data))
                self.heard += new
                for frame in new:
                    if isinstance(frame, kinds):
                        return frame
                    if isinstance(frame, frames.GoAway) and frame.close_code != CloseCode.Draining:
                        return None

    async def round_trip(self) -> bool:
        """Whether the far end listens, and has handled everything said so far and answered it."""
        for nonce in (1, 2):
            await self.say(frames.Ping(nonce))
            if await self.hear(frames.Pong) is None:
                return False
        return True


MakeHello = Callable[["Stranger", PeerId, Role], frames.Hello]


class Stranger:
    """A host of its own at the doors of a mesh. `make_hello`: with what it tries to get in."""

    def __init__(self, world: World, identity: KeyPair, make_hello: MakeHello) -> None:
        self.world = world
        self.identity = identity
        self.peer = identity.peer_id
        self._make_hello = make_hello
        self.host = MeshHost(identity, [LOOPBACK], limits=HostLimits(), on_stream=self._serve)
        self.asked: list[frames.Request] = []
        self.wishes = 0
        self._claims = Role.NONE

    @asynccontextmanager
    async def at_large(self, claims: Role) -> AsyncIterator[Stranger]:
        """Run its host; who dials it is told that it has these roles."""
        self._claims = claims
        async with self.host:
            self.host.serve_raw(HOP_PROTOCOL, self._take_wish)
            yield self
        for one in self.world.residents:  # the next attempt begins at the beginning
            await until(lambda one=one: one.network.link(self.peer) is None)

    async def talk(self, resident: Resident, claims: Role, *said: frames.Frame) -> Talk:
        """Say Hello and everything else in one breath."""
        talk = Talk(await self.host.dial(resident.peer, resident.host.addresses()))
        await talk.say(self.hello(resident.peer, claims), *said)
        return talk

    def hello(self, remote: PeerId, claims: Role) -> frames.Hello:
        """What it says to a peer."""
        return self._make_hello(self, remote, claims)

    async def _serve(self, stream: LinkStream) -> None:
        talk = Talk(stream)
        await talk.say(self.hello(stream.peer, self._claims))
        while True:
            heard = await talk.hear(frames.Ping, frames.Request)
            if heard is None:
                return
            if isinstance(heard, frames.Ping):
                await talk.say(frames.Pong(heard.nonce))
            self.asked += [one for one in talk.heard if isinstance(one, frames.Request)]

    async def _take_wish(self, net_stream) -> None:
        self.wishes += 1
        await net_stream.reset()
