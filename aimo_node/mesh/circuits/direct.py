"""Direct connections to a peer that is linked over a circuit: dialled, or opened by both ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.direct_dial import (
    LIBRARY_ERRORS,
    STAGGER_SECONDS,
    Dial,
    race_addresses,
)
from aimo_node.mesh.fixes.identify_library import (
    IDENTIFY_PROTOCOL,
    DecodeError,
    observed,
    read_answer,
)
from aimo_node.mesh.fixes.library import ID, Multiaddr
from aimo_node.mesh.fixes.tcp_addresses import socket_multiaddr, tcp_endpoint
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.link_stream import LinkStream

OBSERVED_SECONDS_MAX: Final = 2.0
"""For a relay's answer to how it sees this node: two round trips."""


@dataclass(frozen=True, slots=True)
class Foothold:
    """Where this node's connection to a relay leaves from.

    Attributes:
        local: IP address and port; None if nothing else can leave from there: this node was
            dialled by the relay.
        observed: the same as the relay sees it; None if it does not say.
        is_loopback: whether the relay runs on this machine.
    """

    local: tuple[str, int] | None = None
    observed: str | None = None
    is_loopback: bool = False


class DirectWays:
    """Opens direct connections beside those there are.

    Args:
        host: what connections belong to.
        nursery: where a connection that came second is closed.
    """

    def __init__(self, host: MeshHost, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._swarm = host.libp2p_host.get_network()

    async def foothold(self, relay: PeerId) -> Foothold:
        """Ask a relay how it sees this node's connection to it."""
        for connection in self._host.connections(relay):
            muxed = connection.muxed_conn
            remote = muxed.get_remote_address()
            near = remote is not None and ipaddress.ip_address(remote[0]).is_loopback
            local = muxed.get_local_address() if muxed.is_initiator else None
            return Foothold(local, await self._observed_by(relay), near)
        return Foothold()

    async def dial(self, peer: PeerId, targets: Sequence[str]) -> LinkStream:
        """Connect to where the peer listens, and open the link's stream.

        Raises:
            NetworkError: it listens at none of them; the message says why for each.
        """
        return await self._host.open_link(await self._race(self._swarm.dial_addr, peer, targets))

    async def meet(self, peer: PeerId, targets: Sequence[str], foothold: Foothold) -> LinkStream:
        """As the client of a connection that both ends open at once, open the link's stream.

        Raises:
            NetworkError: the peer was met nowhere; the message says why.
        """

        async def dial(address: Multiaddr, peer_id: ID) -> Any:  # noqa: ANN401 (SwarmConn)
            source = foothold.local if _fits(address, foothold.local) else None
            return await self._swarm.dial_addr(address, peer_id, source=source)

        return await self._host.open_link(await self._race(dial, peer, targets, stagger=0.0))

    async def await_at(self, peer: PeerId, targets: Sequence[str], foothold: Foothold) -> str:
        """As the server of a connection that both ends open at once, make the connection.

        Returns:
            Where the peer was met.

        Raises:
            NetworkError: the peer was met nowhere; the message says why.
        """
        if foothold.local is None:
            raise NetworkError("the relay dialled this node, so no hole can be punched")
        dial = partial(self._swarm.dial_addr_as_responder, source=foothold.local)
        fitting = [one for one in targets if _fits(Multiaddr(one), foothold.local)]
        connection = await self._race(dial, peer, fitting, stagger=0.0)
        host, port = connection.muxed_conn.get_remote_address()
        return f"{host}:{port}"

    async def _race(
        self, dial: Dial, peer: PeerId, targets: Sequence[str], stagger: float = STAGGER_SECONDS
    ) -> Any:  # noqa: ANN401 (libp2p's SwarmConn)
        addresses = [Multiaddr(target) for target in targets]
        peer_id = ID.from_base58(peer)
        return await race_addresses(
            dial, peer_id, addresses, self._nursery, stagger_seconds=stagger
        )

    async def _observed_by(self, relay: PeerId) -> str | None:
        seen = None
        with trio.move_on_after(OBSERVED_SECONDS_MAX):
            try:
                net_stream = await self._host.open_stream(relay, IDENTIFY_PROTOCOL)
                try:
                    seen = observed(await read_answer(net_stream.muxed_stream))
                finally:
                    with trio.CancelScope(shield=True):
                        await net_stream.reset()
            except (NetworkError, DecodeError, *LIBRARY_ERRORS):
                return None
        return None if seen is None else str(socket_multiaddr(*seen))


def _fits(address: Multiaddr, local: tuple[str, int] | None) -> bool:
    """Whether a connection there can leave from a local address."""
    return local is not None and (":" in tcp_endpoint(address)[0]) is (":" in local[0])
