"""What keeps a node in its mesh: relays known and kept on disk, links to them, sleep noticed."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from aimo_node.assembly.incarnation import next_incarnation
from aimo_node.assembly.providing import INCARNATION_FILE
from aimo_node.config.settings import Settings
from aimo_node.domain.ids import PeerId, Role
from aimo_node.mesh.changes.recovery import Recovery
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.joiner import Joiner
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.relays.address_book import AddressBook
from aimo_node.mesh.relays.book import RelayBook
from aimo_node.mesh.relays.news import OwnRelay, RelayNews


class Rejoining:
    """The parts, put together.

    Attributes:
        book: the relays that count as such.
        joiner: keeps links to them.
        recovery: its `on_change` is for whoever has something to do after sleep or a change of
            networks.
    """

    def __init__(
        self,
        settings: Settings,
        roles: Role,
        identity: KeyPair,
        network: MeshNetwork,
        *,
        told: Mapping[PeerId, Sequence[str]],
        mesh: bytes,
    ) -> None:
        """
        Args:
            told: addresses by peer id, of the relays the owner named.
            mesh: its public name; empty for an open one, whose relays are not kept: the next open
                mesh this node joins would have the same name.
        """
        self._state = settings.node.state
        self._identity = identity
        self._network = network
        self._is_relay = Role.RELAY in roles
        self.book = RelayBook(identity.peer_id, told)
        self.joiner = Joiner(
            network,
            self.book,
            random.Random(secrets.randbits(64)),  # noqa: S311 (only spreads dials)
            joins_all=self._is_relay,
        )
        self._file = AddressBook(self._state, mesh, self.book) if mesh else None
        self.recovery = Recovery(network)
        self.recovery.on_change.append(self.joiner.retry_now)

    def start(self, nursery: trio.Nursery, addresses: Callable[[], Sequence[str]]) -> None:
        """Watch, listen to relays and keep what they say; `addresses`: of this node. To be called
        once, before links are made."""
        news = RelayNews(self._network, self.book, self._own(addresses))
        self._network.add_observer(news)
        nursery.start_soon(news.run)
        if self._file is not None:
            self._file.restore()
            nursery.start_soon(self._file.run)
        nursery.start_soon(self.recovery.run)

    def _own(self, addresses: Callable[[], Sequence[str]]) -> OwnRelay | None:
        if not self._is_relay:
            return None
        path = self._state / INCARNATION_FILE
        incarnation = next_incarnation(path, time.time_ns() // 1_000_000)
        return OwnRelay(self._identity, incarnation, addresses)
