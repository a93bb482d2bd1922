"""What a node serves: its engines, those added at run time, and what it says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import trio

from aimo_node import __version__
from aimo_node.assembly.control_socket import Command
from aimo_node.assembly.engines import EngineMaker, free_label
from aimo_node.assembly.incarnation import next_incarnation
from aimo_node.assembly.owner_commands import OwnerCommands
from aimo_node.assembly.pause_switch import PauseSwitch
from aimo_node.assembly.registered import RegisteredEndpoints
from aimo_node.assembly.usage_keeping import UsageKeeper
from aimo_node.config.settings import Settings
from aimo_node.dispatch.hosting import HostedEngine
from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.own_provider import OwnProvider
from aimo_node.dispatch.quota import Quota
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.models import Descriptor, EngineState, Health, Status
from aimo_node.mesh.directory.announcer import Announcer, Voice
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.network import MeshNetwork
from aimo_node.routing.table import RoutingTable
from aimo_node.telemetry.metrics import NodeMetrics

INCARNATION_FILE: Final = "incarnation"
OWN_SECONDS: Final = 1.0
"""How often a node tells its own edge how busy it is; what changes, it tells at once."""


class ProviderSide:
    """The provider in a node; an edge has one without engines, until an endpoint is added.

    Attributes:
        service: serves the requests.
        registered: endpoints added at run time; only an edge has a door for that.
        usage: who used it; its `run` writes that down.
        configured: whether the configuration names engines.
    """

    def __init__(
        self, settings: Settings, roles: Role, identity: KeyPair, metrics: NodeMetrics
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._incarnation = next_incarnation(
            settings.node.state / INCARNATION_FILE, time.time_ns() // 1_000_000
        )
        self._addresses: Callable[[], tuple[str, ...]] = tuple
        self._own: OwnProvider | None = None
        maker = EngineMaker(settings, roles)
        quota = Quota(
            settings.provider.quota_requests_per_day, settings.provider.quota_tokens_per_day
        )
        meter = Meter(identity.peer_id, quota, _now)
        self.service = ProviderService(identity.peer_id, metrics.provider, meter)
        self.usage = UsageKeeper(settings.node.state, meter)
        self._switch = PauseSwitch(self.service, settings.node.state)
        self.registered = RegisteredEndpoints(self.service, maker, settings.node.state)
        sections = settings.provider.engines if Role.PROVIDER in roles else ()
        self.configured = bool(sections)
        labels = list(self.registered.read()) if Role.EDGE in roles else []
        for section in sections:
            labels.append(free_label(section.name, labels))
            self.service.add(maker.plan(section, labels[-1]))
        self.registered.restore()
        self._switch.restore()
        self.service.watch(self._on_change)

    def announce_over(
        self, network: MeshNetwork, addresses: Callable[[], tuple[str, ...]]
    ) -> Announcer:
        """The voice that tells relays; `addresses` says where others reach this node."""
        self._addresses = addresses
        announcer = Announcer(self._identity, network, Voice(self.describe, self.status))
        self.service.watch(announcer.changed)
        return announcer

    async def tell_own_edge(self, table: RoutingTable) -> None:
        """Keep this node's own entry in its edge's table true until cancelled."""
        self._own = OwnProvider(table, lambda: self.describe(to_owner=True), self.status)
        while True:
            self._own.refresh(trio.current_time())
            await trio.sleep(OWN_SECONDS)

    def describe(self, *, to_owner: bool = False) -> Descriptor:
        """What this node offers now; the revision is not filled in."""
        offer = self.service.offer(to_owner=to_owner)
        return Descriptor(
            peer=self.peer,
            incarnation=self._incarnation,
            models=offer.models,
            addresses=self._addresses(),
            engine=offer.kinds,
            engine_state=offer.state,
            engines=offer.engines,
            requests_max=offer.requests_max,
            region=self._settings.provider.region,
            version=__version__,
        )

    def status(self) -> Status:
        """How it is now; the seq is not filled in."""
        return Status(self.peer, self._incarnation, 0, self.service.health(), self.service.load())

    def publish_numbers(self, metrics: NodeMetrics) -> None:
        """Have each engine's numbers among the node's metrics."""

        def each(read: Callable[[HostedEngine], float]) -> Callable[[], dict[str, float]]:
            return lambda: {engine.plan.label: read(engine) for engine in self.service.engines}

        watch = metrics.watch_each
        watch("aimo_engine_up", each(lambda one: one.state is EngineState.RUNNING))
        watch("aimo_engine_requests_running", each(lambda one: one.load().running))
        watch("aimo_engine_requests_waiting", each(lambda one: one.load().waiting))
        watch("aimo_engine_kv_used_ratio", each(lambda one: one.load().kv_used))
        watch("aimo_engine_prefix_hit_ratio", each(lambda one: one.load().prefix_hits))
        quotas = self.service.meter.quotas
        metrics.watch("aimo_provider_paused", lambda: self.service.paused)
        metrics.watch("aimo_provider_over_quota_total", lambda: quotas.refused_total)

    def owner_commands(self) -> Mapping[str, Command]:
        """What its owner may tell it over the control socket."""
        return OwnerCommands(self.peer, self._switch, self.usage).by_name()

    @property
    def peer(self) -> PeerId:
        """This node."""
        return self._identity.peer_id

    @property
    def can_serve(self) -> bool:
        """Whether an engine takes requests, or there is none that should."""
        return not self.configured or self.service.health() is not Health.OFFLINE

    def _on_change(self) -> None:
        if self._own is not None:
            self._own.refresh(trio.current_time())


def _now() -> float:
    return time.time_ns() / 1e9
