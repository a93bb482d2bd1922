"""One node from configuration to its end: its parts, started in order and stopped in reverse."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Final

import structlog
import trio

from aimo_node.assembly.control_socket import ControlSocket
from aimo_node.assembly.engine_commands import engine_commands
from aimo_node.assembly.membership import membership, relays_of
from aimo_node.assembly.node_status import NodeParts, status_command
from aimo_node.assembly.peer_commands import peer_commands
from aimo_node.assembly.providing import ProviderSide
from aimo_node.assembly.rejoining import Rejoining
from aimo_node.config.settings import Settings
from aimo_node.dispatch.dispatcher import Dispatcher
from aimo_node.domain.ids import Role
from aimo_node.domain.join import parse_join
from aimo_node.domain.models import Health
from aimo_node.domain.ready import ReadyLine
from aimo_node.errors import NetworkError
from aimo_node.mesh.circuits.client import RESERVATIONS_MAX, Circuits
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.paths import Paths
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.circuits.upgrades import Upgrades
from aimo_node.mesh.directory.announcer import Announcer
from aimo_node.mesh.directory.discovery import Discovery
from aimo_node.mesh.directory.relay import RelayDirectory
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import load_identity
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol import limits
from aimo_node.routing.table import RoutingTable
from aimo_node.telemetry.metrics import NodeMetrics

log = structlog.get_logger()

GC_THRESHOLD: Final = 50_000
"""New objects between collections: the default of 700 costs visible pauses at 1,000 streams."""
OWN_LINK_SECONDS: Final = 0.1
"""Before the link of a node to itself is opened again."""
ADDRESSES_MAX: Final = limits.DESCRIPTOR_ADDRESSES_MAX
CLOSE_SECONDS: Final = 2.0
"""For the last GoAways."""
LOOK_SECONDS: Final = 0.02
"""How often a node with all roles looks whether its edge knows its engine, at the start only."""


async def run_node(
    settings: Settings,
    roles: Role,
    *,
    stop: trio.Event,
    on_ready: Callable[[ReadyLine], None],
) -> None:
    """Run a node until `stop` is set and what was running has ended.

    Args:
        settings: with the defaults of these roles filled in and every ``@FILE`` resolved.
        on_ready: called once, when the node can be used.

    Raises:
        StartError: the node cannot start; possibly inside an exception group.
    """
    await Node(settings, roles, stop).run(on_ready)


class Node:
    """The parts of one node. `run` is its life."""

    def __init__(self, settings: Settings, roles: Role, stop: trio.Event) -> None:
        self._settings = settings
        self._roles = roles
        self._stop = stop
        self._metrics = NodeMetrics()
        self._identity = load_identity(settings.node.identity_file)
        targets = [parse_join(text) for text in settings.mesh.join]
        self._membership = membership(settings, targets, self._identity, roles)
        serves = bool(roles & (Role.PROVIDER | Role.EDGE))
        self._providing = (
            ProviderSide(settings, roles, self._identity, self._metrics) if serves else None
        )
        self._network = MeshNetwork(
            self._membership.doorkeeper,
            self._providing.service.handle if self._providing else None,
        )
        self._rejoining = Rejoining(
            settings,
            roles,
            self._identity,
            self._network,
            told=relays_of(targets, self._identity.peer_id),
            mesh=self._membership.doorkeeper.mesh,
        )
        self._joiner = self._rejoining.joiner
        self._host = MeshHost(
            self._identity,
            settings.mesh.listen_addresses,
            limits=HostLimits(),
            on_stream=self._network.accept,
        )
        self._circuits = Circuits(
            self._host,
            self._network,
            self._rejoining.book,
            changed=self._on_new_addresses,
            # a relay can be dialled, or it would be none
            reservations_max=0 if Role.RELAY in roles else RESERVATIONS_MAX,
        )
        self._network.add_observer(self._circuits)
        self._upgrades = Upgrades(self._host, self._network, self._addresses)
        self._network.add_observer(self._upgrades)
        self._rejoining.book.watch(self._circuits.look)
        self._rejoining.recovery.on_change.append(self._circuits.retry_now)
        self._rejoining.recovery.on_change.append(self._upgrades.retry_now)
        self._announcer: Announcer | None = None
        self._wants_own_link = trio.Event()
        self._dispatcher: Dispatcher | None = None
        self._relay: RelayDirectory | None = None
        self._closing = trio.Event()
        self._door_closed = trio.Event()
        self._is_ready = False
        self._url: str | None = None

    async def run(self, on_ready: Callable[[ReadyLine], None]) -> None:
        """See `run_node`."""
        async with self._host, trio.open_nursery() as nursery:
            paths = Paths(self._host, self._circuits, seconds_max=HostLimits().dial_seconds_max)
            nursery.start_soon(self._network.run, paths)
            await self._network.running.wait()
            self._membership.start(nursery, self._host, self._network)
            self._rejoining.start(nursery, self._addresses)
            nursery.start_soon(self._circuits.run)
            nursery.start_soon(self._upgrades.run)
            self._start_roles(nursery)
            nursery.start_soon(self._control_socket().run)
            if await self._become_member():
                await self._serve(nursery, on_ready)
            else:
                self._door_closed.set()
            await self._wind_down()
            nursery.cancel_scope.cancel()

    async def _serve(self, nursery: trio.Nursery, on_ready: Callable[[ReadyLine], None]) -> None:
        """Join, open the door, say so, and go on until the node is told to stop."""
        nursery.start_soon(self._joiner.run)
        if self._roles.bit_count() > 1:
            # roles of one process talk over a link of the node to itself
            self._wants_own_link.set()
            await self._network.connect(self._network.peer)
        nursery.start_soon(self._keep_own_link)
        self._url = await self._open_door(nursery)
        self._publish_numbers()
        if await self._wait_until_ready():
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            self._is_ready = True
            on_ready(self._ready_line(self._url))
            await self._stop.wait()

    async def _become_member(self) -> bool:
        """Whether this node is a member; False if it was told to stop meanwhile."""
        is_member = False

        async def obtain() -> None:
            nonlocal is_member
            await self._membership.obtain(self._host)
            is_member = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(obtain)
            await self._stop.wait()
            nursery.cancel_scope.cancel()
        return is_member

    async def _keep_own_link(self) -> None:
        """It can be lost: a process that was stopped for a while takes itself for dead."""
        await self._wants_own_link.wait()
        while not self._network.draining:
            with contextlib.suppress(NetworkError):
                link = await self._network.connect(self._network.peer)
                await link.closed.wait()
            await trio.sleep(OWN_LINK_SECONDS)

    def _control_socket(self) -> ControlSocket:
        providing = self._providing
        service = providing.service if providing is not None else None
        parts = NodeParts(
            self._roles,
            self._network,
            self._joiner,
            ready=self._can_be_used,
            listen=self._host.addresses,
            http=lambda: self._url,
            service=service,
        )
        commands = {**status_command(parts), **self._membership.commands(self._addresses)}
        providers = self._dispatcher.providers if self._dispatcher is not None else tuple
        commands.update(peer_commands(self._network, self._roles, providers))
        if providing is not None:
            commands.update(engine_commands(providing.service))
            commands.update(providing.owner_commands())
        return ControlSocket(self._settings.node.state, commands)

    def _start_roles(self, nursery: trio.Nursery) -> None:
        if Role.RELAY in self._roles:
            self._start_relay(nursery)
        if self._providing is not None:
            self._announcer = self._providing.announce_over(self._network, self._addresses)
            self._network.add_observer(self._announcer)
            nursery.start_soon(self._announcer.run)
            self._providing.service.watch(self._look_at_engines)
            nursery.start_soon(self._providing.service.run)
            nursery.start_soon(self._providing.usage.run)
        if Role.EDGE in self._roles:
            table = RoutingTable()
            relays, own = self._rejoining.book, self._network.peer
            discovery = Discovery(self._network, table, relays=relays, own=own)
            self._network.add_observer(discovery)
            relays.watch(discovery.look)
            self._rejoining.recovery.on_change.append(discovery.retry_now)
            trusted = self._settings.edge.trusted_peers
            if trusted is not None:
                trusted |= {self._network.peer}
            self._dispatcher = Dispatcher(self._network, table, self._metrics, trusted=trusted)
            nursery.start_soon(discovery.run)
            nursery.start_soon(self._dispatcher.run)
            if self._providing is not None:
                nursery.start_soon(self._providing.tell_own_edge, table)
                self._look_at_engines()

    def _look_at_engines(self) -> None:
        """An edge that got an engine asks itself over a link of its own."""
        if Role.EDGE in self._roles and self._providing and self._providing.service.engines:
            self._wants_own_link.set()

    def _start_relay(self, nursery: trio.Nursery) -> None:
        self._relay = RelayDirectory(self._network)
        self._network.add_observer(self._relay)
        circuits = self._settings.relay
        limits_of_circuits = CircuitLimits(
            circuit_bytes_max=int(circuits.circuit_megabytes_max * 1e6),
            member_bytes_per_second=circuits.member_megabytes_per_second * 1e6,
        )
        hops = CircuitRelay(self._host, self._network, self._addresses, limits_of_circuits)
        self._network.add_observer(hops)
        hops.start()
        nursery.start_soon(self._relay.run)
        if self._roles == Role.RELAY:
            # gossip is for relays among themselves; a laptop that is everything has no others
            from aimo_node.mesh.directory.exchange import RelayExchange  # noqa: PLC0415 (20 MB)

            exchange = RelayExchange(self._identity, self._host, self._network, self._relay)
            nursery.start_soon(exchange.run)

    async def _open_door(self, nursery: trio.Nursery) -> str | None:
        if self._settings.edge.http_bind is None:
            self._door_closed.set()
            return None
        from aimo_node.assembly.door import Door  # noqa: PLC0415 (a node without HTTP needs no Quart)
        from aimo_node.edge.health import Vitals  # noqa: PLC0415
        from aimo_node.edge.serving.server import StartReport  # noqa: PLC0415

        door = Door(
            settings=self._settings,
            vitals=Vitals(self._can_be_used, self._metrics.render),
            metrics=self._metrics,
            closing=self._closing,
            inference=self._dispatcher,
            endpoints=self._providing.registered if self._providing and self._dispatcher else None,
        )

        async def serve(task_status: StartReport) -> None:
            try:
                await door.serve(task_status)
            finally:
                self._door_closed.set()
            if not self._closing.is_set():
                raise RuntimeError("the HTTP server has ended by itself")

        url: str = await nursery.start(serve)
        return url

    def _can_be_used(self) -> bool:
        engine_answers = self._providing is None or self._providing.can_serve
        # Without its relay an edge still serves over the links it has: taking it out of service
        # then would turn the loss of one relay into the loss of every edge.
        in_touch = self._joiner.joined or any(link.usable for link in self._network.links())
        return self._is_ready and not self._closing.is_set() and in_touch and engine_answers

    async def _wait_until_ready(self) -> bool:
        """Whether the node became ready before it was told to stop."""
        ready = False

        async def wait_parts() -> None:
            nonlocal ready
            await self._joiner.wait_joined()
            if self._providing is not None and self._providing.configured:
                await self._providing.service.wait_settled()
                await self._until_own_models_are_known()
            ready = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_parts)
            await self._stop.wait()
            nursery.cancel_scope.cancel()
        return ready

    def _addresses(self) -> tuple[str, ...]:
        """Where others reach this node, the best first, circuits last."""
        own = f"/p2p/{self._identity.peer_id}"
        told = [text.partition("/p2p/")[0] + own for text in self._settings.mesh.announce]
        circuits = self._circuits.addresses()
        direct = list(dict.fromkeys([*told, *self._host.addresses()]))
        return (*direct[: ADDRESSES_MAX - len(circuits)], *circuits)

    def _on_new_addresses(self) -> None:
        if self._announcer is not None:
            self._announcer.changed()

    async def _until_own_models_are_known(self) -> None:
        """A laptop that says it is ready answers the first question, not "no such model"."""
        while self._dispatcher is not None:
            entry = self._dispatcher.table.get(self._network.peer)
            is_paused = self._providing is not None and self._providing.service.paused
            if is_paused or (entry is not None and entry.health is not Health.OFFLINE):
                return
            await trio.sleep(LOOK_SECONDS)

    def _ready_line(self, url: str | None) -> ReadyLine:
        addresses = tuple(self._host.addresses())
        models = self._providing.service.offer(to_owner=True).models if self._providing else ()
        is_relay = Role.RELAY in self._roles
        return ReadyLine(
            peer_id=self._identity.peer_id,
            roles=self._roles,
            listen=addresses,
            http=url,
            models=tuple(model.name for model in models),
            join=self._membership.join_string(self._addresses()) if is_relay else None,
            paused=self._providing is not None and self._providing.service.paused,
        )

    async def _wind_down(self) -> None:
        """No new requests; running ones finish within the grace period; then say goodbye."""
        grace_over = trio.current_time() + self._settings.node.grace_seconds
        self._closing.set()
        if self._dispatcher is not None:
            self._dispatcher.drain()
        if self._providing is not None:
            self._providing.service.drain()
        if self._announcer is not None:
            self._announcer.announce()
        self._network.drain()
        await self._door_closed.wait()
        if self._providing is not None:
            with trio.move_on_at(grace_over):
                await self._providing.service.wait_idle()
                await self._network.wait_idle()
        with trio.move_on_after(CLOSE_SECONDS):
            await self._network.close()

    def _publish_numbers(self) -> None:
        watch, network = self._metrics.watch, self._network
        watch("aimo_links_open", lambda: network.statistics().links_open)
        self._metrics.watch_each("aimo_links_by_path", network.links_by_path)
        watch("aimo_link_bytes_total", lambda: network.statistics().bytes_in, "received")
        watch("aimo_link_bytes_total", lambda: network.statistics().bytes_out, "sent")
        if self._providing is not None:
            self._providing.publish_numbers(self._metrics)
        if self._dispatcher is not None:
            table = self._dispatcher.table
            watch("aimo_directory_providers", lambda: len(table))
        elif self._relay is not None:
            book = self._relay.book
            watch("aimo_directory_providers", lambda: len(book))
