"""Fault: libp2p dials on its own whoever it has heard of, and interrogates every peer.

The auto-connector dials peers from the peerstore, where strangers can put addresses. Identify
runs in system tasks that outlive the host and end the process when they fail. Neither is needed:
the mesh dials whom it wants, and descriptors tell what a peer can do. Questions of other
implementations are still answered.
"""

from __future__ import annotations

from typing import Any

import trio

from aimo_node.mesh.fixes.library import (
    ID,
    IDENTIFY_PUSH_PROTOCOL,
    BasicHost,
    MultiselectError,
    Swarm,
)
from aimo_node.mesh.fixes.protocol_names import NameReader


class IdleConnector:
    """Takes the place of libp2p's auto-connector and does nothing."""

    _is_connecting = False

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Nothing to run."""

    async def maybe_connect(self) -> None:
        """Never."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Nothing to remember."""


class ReticentHost(BasicHost):  # type: ignore[misc]
    """A host that answers Identify and Ping, and asks nobody anything."""

    def __init__(self, network: Swarm) -> None:
        network.auto_connector = IdleConnector()
        super().__init__(network, disable_identify_address_discovery=True)
        # Lets any stranger write into the peerstore.
        self.remove_stream_handler(IDENTIFY_PUSH_PROTOCOL)

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        del peer_id, reason

    async def _push_identify_to_all_peers(self) -> None:
        return

    async def serve(self, net_stream: Any) -> None:  # noqa: ANN401 (libp2p's NetStream)
        """Negotiate an inbound stream's protocol and run its handler."""
        seconds_max = self._network.connection_config.inbound_stream_protocol_negotiation_timeout
        try:
            protocol, handler = await self.multiselect.negotiate(
                NameReader(net_stream), int(seconds_max)
            )
        except MultiselectError:
            handler = None
        if handler is None:
            await net_stream.reset()
            return
        net_stream.set_protocol(protocol)
        await handler(net_stream)
