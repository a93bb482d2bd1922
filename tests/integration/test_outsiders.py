"""Who does not belong to a mesh gets nothing of it: each right, tried by each kind of outsider.

Also who belongs to it for something else only: a member is heard in its own roles. The last row of
each table is somebody who may do everything, so that no attempt fails for another reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, SKEW_MS
from aimo_node.errors import AimoError, NetworkError
from aimo_node.mesh.directory.exchange import TOPIC, RelayExchange
from aimo_node.mesh.directory.gossip import Gossip
from aimo_node.mesh.fixes.circuit_messages import (
    HOP_PROTOCOL,
    ask_for_circuit,
    ask_for_reservation,
)
from aimo_node.mesh.fixes.library import ID, MuxedStreamError
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.link import Link
from aimo_node.protocol import frames
from aimo_node.protocol.handshake import Admission, mesh_id
from aimo_node.protocol.limits import VERSIONS_SUPPORTED
from tests.integration.outsiders import (
    ANY,
    NOW_MS,
    SECRET,
    MakeHello,
    Stranger,
    World,
    described,
    outgoing,
    question,
    until,
)

QUIET_SECONDS = 2.0
"""Two of gossipsub's heartbeats: whoever is admitted is a neighbour by then."""
GOSSIP_SECONDS = 20.0
STRANGER = KeyPair.from_seed(b"stranger".ljust(32, b"-"))
VERSIONS = list(VERSIONS_SUPPORTED)


# --- what is tried; each says whether it was of any use ---------------------------------------


async def link(one: Stranger, claims: Role) -> bool:
    talk = await one.talk(one.world.relay, claims)
    return await talk.round_trip()


async def provide(one: Stranger, claims: Role) -> bool:
    talk = await one.talk(one.world.relay, claims, *described(one.identity, one.host.addresses()))
    await talk.round_trip()
    return one.world.relay.knows(one.peer)


async def consume(one: Stranger, claims: Role) -> bool:
    provider = one.world.provider
    talk = await one.talk(provider, claims, question(provider.peer))
    answer = await talk.hear(frames.StreamChunk, frames.Error)
    assert isinstance(answer, frames.StreamChunk) == (one.peer in provider.consumers)
    provider.consumers.clear()
    return isinstance(answer, frames.StreamChunk)


async def subscribe(one: Stranger, claims: Role) -> bool:
    talk = await one.talk(one.world.relay, claims, frames.Subscribe())
    await talk.round_trip()
    return any(isinstance(frame, frames.Directory) for frame in talk.heard)


async def pass_for_a_relay(one: Stranger, claims: Role) -> bool:
    """Tell an edge what providers there are."""
    talk = await one.talk(one.world.edge, claims, frames.Directory(full=True))
    await talk.round_trip()
    return frames.Directory in one.world.edge.heard.kinds_from(one.peer)


async def _hop(one: Stranger, claims: Role, wish: Callable[..., Awaitable[object]]) -> bool:
    """The stream is open before the relay has heard anything that could make it hang up."""
    relay = one.world.relay
    await one.host.dial(relay.peer, relay.host.addresses())
    hop = await one.host.open_stream(relay.peer, HOP_PROTOCOL)
    talk = await one.talk(relay, claims)
    await talk.round_trip()
    try:
        await wish(hop.muxed_stream)
    except (NetworkError, MuxedStreamError):
        return False
    return True


async def reserve(one: Stranger, claims: Role) -> bool:
    got = await _hop(one, claims, ask_for_reservation)
    book = one.world.relay.hops.book
    assert got == book.has_reservation(one.peer, trio.current_time())
    return got


async def hop(one: Stranger, claims: Role) -> bool:
    return await _hop(one, claims, lambda stream: ask_for_circuit(stream, one.world.provider.peer))


async def be_asked(one: Stranger, claims: Role) -> bool:
    """An edge was told that this is a provider, by a relay that lies."""
    edge = one.world.edge
    edge.network.remember(one.peer, one.host.addresses())
    try:
        await edge.network.open_exchange(one.peer, outgoing())
    except AimoError:
        return bool(one.asked)
    await until(lambda: bool(one.asked))
    return True


async def be_hopped_over(one: Stranger, claims: Role) -> bool:
    """An edge was told that some provider is reached through this host."""
    edge, provider = one.world.edge, one.world.provider
    edge.network.remember(one.peer, one.host.addresses())
    with suppress(AimoError):
        await edge.circuits.dial(provider.peer, one.peer, one.host.addresses())
    return one.wishes > 0


ATTEMPTS: dict[Callable[[Stranger, Role], Awaitable[bool]], Role] = {
    link: Role.NONE,
    provide: Role.PROVIDER,
    consume: Role.EDGE,
    subscribe: Role.EDGE,
    reserve: Role.NONE,
    hop: Role.NONE,
    pass_for_a_relay: Role.RELAY,
    be_asked: Role.PROVIDER,
    be_hopped_over: Role.RELAY,
}
"""What is tried, and in which role one would have to be for it."""

EVERYTHING = frozenset(attempt.__name__ for attempt in ATTEMPTS)
NOTHING: frozenset[str] = frozenset()
AS_A_MEMBER = frozenset({"link", "reserve", "hop"})

# --- who tries it -----------------------------------------------------------------------------


def showing(**changes: object) -> MakeHello:
    """Somebody whose certificate says that."""

    def make(one: Stranger, _remote: PeerId, claims: Role) -> frames.Hello:
        peer = changes.get("peer", one.peer)
        own = {name: value for name, value in changes.items() if name != "peer"}
        proof = one.world.certificate(PeerId(str(peer)), **own)
        return frames.Hello(VERSIONS, one.world.key.public_key, proof, roles=int(claims))

    return make


def proving(proof: bytes) -> MakeHello:
    """Somebody who shows these bytes instead of a certificate."""

    def make(one: Stranger, _remote: PeerId, claims: Role) -> frames.Hello:
        return frames.Hello(VERSIONS, one.world.key.public_key, proof, roles=int(claims))

    return make


def forged(one: Stranger, remote: PeerId, claims: Role) -> frames.Hello:
    """A certificate that the stranger signed with its own key."""
    other = World(one.world.folder / "forged", certified=True)
    other.key = STRANGER
    proof = other.certificate(one.peer)
    return frames.Hello(VERSIONS, one.world.key.public_key, proof, roles=int(claims))


def knowing(secret: bytes | None) -> MakeHello:
    """Somebody who knows that secret."""

    def make(one: Stranger, remote: PeerId, claims: Role) -> frames.Hello:
        return Admission(one.peer, secret, claims).hello_to(remote)

    return make


def replaying(one: Stranger, remote: PeerId, claims: Role) -> frames.Hello:
    """With the proof by which the provider got in, and the one the far end would give itself."""
    return Admission(one.world.provider.peer, SECRET, claims).hello_to(remote)


def naming_the_mesh(one: Stranger, _remote: PeerId, claims: Role) -> frames.Hello:
    """The name of a mesh is no secret."""
    return frames.Hello(VERSIONS, mesh_id(SECRET), b"p" * 32, roles=int(claims))


WITH_AN_AUTHORITY: dict[str, tuple[MakeHello, frozenset[str]]] = {
    "no certificate": (proving(b""), NOTHING),
    "rubbish": (proving(b"\xc1" * 150), NOTHING),
    "expired": (
        showing(issued_ms=NOW_MS - 9 * SKEW_MS, expires_ms=NOW_MS - SKEW_MS - 1),
        NOTHING,
    ),
    "of the future": (showing(issued_ms=NOW_MS + SKEW_MS + 1), NOTHING),
    "of another mesh": (showing(mesh=b"m" * 32), NOTHING),
    "another peer's": (showing(peer=KeyPair.from_seed(b"o" * 32).peer_id), NOTHING),
    "forged": (forged, NOTHING),
    "banned": (showing(), NOTHING),
    "of a mesh with a secret": (knowing(SECRET), NOTHING),
    "an edge": (showing(roles=Role.EDGE), AS_A_MEMBER | {"consume", "subscribe"}),
    "a provider": (showing(roles=Role.PROVIDER), AS_A_MEMBER | {"provide", "be_asked"}),
    "a relay": (
        showing(roles=Role.RELAY),
        AS_A_MEMBER | {"pass_for_a_relay", "be_hopped_over"},
    ),
    "everything": (showing(), EVERYTHING),
}
WITH_A_SECRET: dict[str, tuple[MakeHello, frozenset[str]]] = {
    "no secret": (knowing(None), NOTHING),
    "another secret": (knowing(b"w" * 32), NOTHING),
    "the name of the mesh": (naming_the_mesh, NOTHING),
    "another's proof": (replaying, NOTHING),
    "the secret": (knowing(SECRET), EVERYTHING),
}


async def what_it_gets(world: World, make_hello: MakeHello, rights: frozenset[str]) -> set[str]:
    """A member with other rights tries also without saying in which role."""
    stranger = Stranger(world, STRANGER, make_hello)
    got: set[str] = set()
    for attempt, role in ATTEMPTS.items():
        for claims in {role, Role.NONE} if rights else {role}:
            async with stranger.at_large(claims):
                if await attempt(stranger, claims):
                    got.add(attempt.__name__)
    return got


async def what_everybody_gets(
    folder: Path, kinds: dict[str, tuple[MakeHello, frozenset[str]]], *, certified: bool
) -> dict[str, set[str]]:
    """Each kind in a mesh of its own, all at the same time: hanging up takes a while."""
    found: dict[str, set[str]] = {}

    async def ask(kind: str, make_hello: MakeHello, rights: frozenset[str]) -> None:
        world = World(folder / kind, certified=certified)
        if kind == "banned":
            for one in world.residents:
                one.doorkeeper.learn_bans(world.ban(STRANGER.peer_id))
        async with world.living():
            found[kind] = await what_it_gets(world, make_hello, rights)

    async with trio.open_nursery() as nursery:
        for kind, (make_hello, rights) in kinds.items():
            nursery.start_soon(ask, kind, make_hello, rights)
    return found


async def test_a_mesh_with_an_authority_gives_what_the_certificate_says(tmp_path: Path) -> None:
    found = await what_everybody_gets(tmp_path, WITH_AN_AUTHORITY, certified=True)
    assert found == {kind: rights for kind, (_, rights) in WITH_AN_AUTHORITY.items()}


async def test_a_mesh_with_a_secret_gives_everything_or_nothing(tmp_path: Path) -> None:
    found = await what_everybody_gets(tmp_path, WITH_A_SECRET, certified=False)
    assert found == {kind: rights for kind, (_, rights) in WITH_A_SECRET.items()}


class Gossiper:
    """Somebody who opens gossipsub's streams by hand, claims a provider and notes what it is told.

    `told`: whether the relay ever said what it listens to.
    """

    def __init__(self, world: World, kind: str, make_hello: MakeHello, claims: Role) -> None:
        self.identity = KeyPair.from_seed(kind.encode().ljust(32, b"-"))
        self.told = False
        self._stranger = Stranger(world, self.identity, make_hello)
        self._relay, self._claims = world.relay, claims

    async def run(self, claim: frames.Directory, speak: trio.Event) -> None:
        relay, host = self._relay, self._stranger.host
        async with host, Gossip(host, accepts=lambda _: True) as gossip:
            await gossip.subscribe(TOPIC)
            talk = await self._stranger.talk(relay, self._claims)
            publisher = RelayExchange(self.identity, host, relay.network, relay.directory)
            while not speak.is_set():
                self.told = self.told or bool(gossip.neighbours(TOPIC))
                await trio.sleep(0.05)
            listeners = gossip._pubsub.peer_topics.setdefault(TOPIC, set())
            listeners.add(ID.from_base58(relay.peer))  # as if it had been told so
            while True:
                with suppress(Exception):  # libp2p's, of a connection that was cut
                    await gossip.publish(TOPIC, publisher._sealed(claim))
                await talk.say(frames.Ping(1))
                await trio.sleep(0.1)


async def only_the_relay_is_heard(world: World, kinds: dict[str, MakeHello], honest: str) -> None:
    """Everybody but `honest` is told nothing, and not heard; it is, as a relay."""
    made_up, speak = KeyPair.from_seed(b"u" * 32), trio.Event()
    descriptor, heartbeat = described(made_up, [])
    claim = frames.Directory(descriptors=[descriptor], statuses=[heartbeat], full=True)
    outsiders = [Gossiper(world, kind, make, Role.NONE) for kind, make in kinds.items()]
    relay = Gossiper(world, "honest", kinds[honest], Role.RELAY)
    async with world.living(), trio.open_nursery() as nursery:
        for one in outsiders:
            nursery.start_soon(one.run, claim, speak)
        await trio.sleep(QUIET_SECONDS)  # nothing is to happen, so there is nothing to wait for
        assert not any(one.told for one in outsiders)
        speak.set()
        await trio.sleep(QUIET_SECONDS)  # as above
        assert not world.relay.knows(made_up.peer_id)
        speak = trio.Event()
        nursery.start_soon(relay.run, claim, speak)
        await until(lambda: relay.told, GOSSIP_SECONDS)
        speak.set()
        await until(lambda: world.relay.knows(made_up.peer_id), GOSSIP_SECONDS)
        nursery.cancel_scope.cancel()


async def test_nobody_but_relays_subscribes_to_what_relays_say(tmp_path: Path) -> None:
    """Who opens gossipsub's streams by hand; among them members that are no relays."""
    closed, certified = World(tmp_path, certified=False), World(tmp_path, certified=True)
    banned = KeyPair.from_seed(b"banned".ljust(32, b"-")).peer_id
    for one in certified.residents:
        one.doorkeeper.learn_bans(certified.ban(banned))
    by_secret = {kind: make for kind, (make, _) in WITH_A_SECRET.items()}
    by_certificate = {kind: make for kind, (make, _) in WITH_AN_AUTHORITY.items()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(only_the_relay_is_heard, closed, by_secret, "the secret")
        nursery.start_soon(only_the_relay_is_heard, certified, by_certificate, "a relay")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, certified=True).living() as made:
        yield made


async def through_the_relay(world: World) -> Link:
    """The edge's link to the provider, over a circuit."""
    circuits = world.provider.circuits.addresses()
    world.edge.network.remember(world.provider.peer, circuits)
    link = await world.edge.network.connect(world.provider.peer)
    assert link.path == "circuit"
    return link


@pytest.mark.parametrize("who", ["provider", "edge"])
async def test_a_ban_ends_reservation_and_running_circuits(world: World, who: str) -> None:
    link, relay, banned = await through_the_relay(world), world.relay, getattr(world, who)
    relay.members.learn_bans(world.ban(banned.peer))
    with trio.fail_after(5):
        await link.closed.wait()
    await until(lambda: relay.hops.book.running == 0)
    assert not relay.hops.book.has_reservation(banned.peer, trio.current_time())
    with pytest.raises(AimoError):
        await banned.link(relay)
    kept = world.edge if banned is world.provider else world.provider
    assert relay.hops.book.has_reservation(kept.peer, trio.current_time())


async def test_a_member_whose_certificate_ended_begins_nothing_new(world: World) -> None:
    """A request that still runs keeps its link, and nothing else comes of that link."""
    relay, stranger = world.relay, Stranger(world, STRANGER, showing())
    relay.hold = trio.Event()
    async with stranger.at_large(ANY):
        talk = await stranger.talk(relay, ANY, question(relay.peer))
        assert isinstance(await talk.hear(frames.StreamChunk), frames.StreamChunk)
        hop = await stranger.host.open_stream(relay.peer, HOP_PROTOCOL)
        held = relay.network.link(stranger.peer)
        ends_ms = NOW_MS + CERTIFICATE_MS + SKEW_MS
        relay.doorkeeper._clock_ms = lambda: ends_ms + 1
        relay.members._check_links()
        assert relay.network.link(stranger.peer) is held
        assert held.session.busy
        with pytest.raises(NetworkError, match="permission denied"):
            await ask_for_reservation(hop.muxed_stream)
        await talk.say(
            *described(stranger.identity, stranger.host.addresses()),
            frames.Directory(full=True),
            frames.Subscribe(),
            question(relay.peer),
        )
        assert isinstance(await talk.hear(frames.Error), frames.Error)
        assert not relay.heard.kinds_from(stranger.peer)
        relay.hold.set()


async def test_a_renewed_certificate_is_shown_and_ends_neither_link_nor_circuit(
    world: World,
) -> None:
    """Relays cut the circuits of whoever loses its link, so a renewal must not cost the link."""
    link, relay = await through_the_relay(world), world.relay
    links = [one for node in world.residents for one in node.network.links()]
    world.now_ms += CERTIFICATE_MS // 2
    for node in world.residents:
        renewed = world.certificate(node.peer, roles=node.roles, serial=2)
        assert node.doorkeeper.install(renewed) is None
        node.members.show(renewed)
    await until(lambda: all(world.issued_ms(one) > NOW_MS for one in links))
    world.now_ms += CERTIFICATE_MS // 2 + 2 * SKEW_MS
    for node in world.residents:
        node.members._check_links()
    assert not any(one.session.draining or one.closed.is_set() for one in links)
    assert relay.hops.book.running == 1
    assert link.usable
