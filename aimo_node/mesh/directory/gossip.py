"""Gossipsub between relays: signed messages of at most 60 KB, bounded and paced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import PayloadTooLarge
from aimo_node.mesh.exception_groups import only_leaf
from aimo_node.mesh.fixes.lost_gossip import SturdyGossipSub
from aimo_node.mesh.fixes.malformed_pubsub import SturdyPubsub
from aimo_node.mesh.fixes.pubsub_library import (
    GOSSIPSUB_V11,
    GOSSIPSUB_V12,
    ID,
    Message,
    background_trio_service,
)
from aimo_node.mesh.host import MeshHost

log = structlog.get_logger()

MESSAGE_BYTES_MAX: Final = 60_000
"""Larger ones do not arrive reliably; over 1 MiB they vanish without a word."""

_RECEIVED_MAX: Final = 256
"""Messages waiting for `receive`: 15 MB at most. The oldest are the least worth keeping."""

_QUEUED_PER_PEER_MAX: Final = 16
"""libp2p silently drops what exceeds 32; half of that leaves room for what it forwards."""

_PACING_SECONDS_MAX: Final = 1.0
"""A peer that takes nothing for so long loses messages; the others do not wait for it."""

_PACING_POLL_SECONDS: Final = 0.002

_MESSAGES_PER_SECOND_MAX: Final = 1000.0
"""libp2p's spam guard allows ten per peer and topic, and a busy relay sends more than that."""

_HEARTBEAT_SECONDS: Final = 1
"""libp2p's default of 120 leaves a new relay without messages for two minutes."""


@dataclass(frozen=True, slots=True)
class GossipMessage:
    """One message, its signature already checked.

    `from_peer` is who published and signed it, not who passed it on.
    """

    topic: str
    data: bytes
    from_peer: PeerId


class Gossip:
    """Publish and subscribe; an async context manager on top of a running host.

    Args:
        host: the node's host, running.
        accepts: whether a peer belongs to the mesh. Streams and messages of others are refused;
            a peer that connects has 15 s to be accepted.
        mesh_degree_max: how many neighbours may hang on this node per topic; at least the
            number of connections, for a hub that keeps only some reaches only those.
    """

    def __init__(
        self, host: MeshHost, *, accepts: Callable[[PeerId], bool], mesh_degree_max: int = 1024
    ) -> None:
        self._host = host
        self._accepts = accepts
        self._mesh_degree_max = mesh_degree_max
        self._router: SturdyGossipSub
        self._pubsub: SturdyPubsub
        self._received: deque[GossipMessage] = deque()
        self._arrived = trio.Event()
        self._dropped = 0
        self._publishing = trio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Gossip:
        self._router = SturdyGossipSub(
            protocols=[GOSSIPSUB_V12, GOSSIPSUB_V11],
            degree=8,
            degree_low=6,
            degree_high=self._mesh_degree_max,
            heartbeat_interval=_HEARTBEAT_SECONDS,
            max_messages_per_topic_per_second=_MESSAGES_PER_SECOND_MAX,
            # Both would change the degrees set above, by rules made for the open internet.
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        libp2p_host = self._host.libp2p_host
        # Not before here: until it runs, pubsub blocks every new connection of the host.
        self._pubsub = SturdyPubsub(libp2p_host, self._router, self._accepts, self._deliver)
        async with AsyncExitStack() as stack:
            stack.callback(self._pubsub.detach)
            await stack.enter_async_context(background_trio_service(self._pubsub))
            await stack.enter_async_context(background_trio_service(self._router))
            await self._pubsub.wait_until_ready()
            for peer in self._host.connected_peers():
                self._pubsub.greet(ID.from_base58(peer))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._stack.__aexit__(exc_type, exc_val, exc_tb)
        except BaseExceptionGroup as group:
            if exc_val is not None and only_leaf(group) is exc_val:
                return False  # nothing but the body's own exception, which goes on as it was
            raise

    async def subscribe(self, topic: str) -> None:
        """Receive what is published under `topic` from now on."""
        await self._pubsub.subscribe(topic)

    def neighbours(self, topic: str) -> list[PeerId]:
        """The peers that are known to have subscribed to `topic`."""
        return [PeerId(one.to_base58()) for one in self._pubsub.peer_topics.get(topic, ())]

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign and publish `data`; waits while the peers' queues are full.

        Raises:
            PayloadTooLarge: more than `MESSAGE_BYTES_MAX` bytes.
        """
        if len(data) > MESSAGE_BYTES_MAX:
            raise PayloadTooLarge(
                f"{len(data)} bytes in one gossip message; at most {MESSAGE_BYTES_MAX}"
            )
        async with self._publishing:
            await self._wait_for_queues()
            await self._pubsub.publish(topic, data)

    async def receive(self) -> GossipMessage:
        """The next message somebody else published; the oldest is dropped when too many wait."""
        while not self._received:
            await self._arrived.wait()
        return self._received.popleft()

    async def _wait_for_queues(self) -> None:
        with trio.move_on_after(_PACING_SECONDS_MAX):
            # libp2p's queues tell nobody when they have room again.
            while any(  # noqa: ASYNC110 (for that reason)
                len(queue) >= _QUEUED_PER_PEER_MAX for queue in self._pubsub.peer_queues.values()
            ):
                await trio.sleep(_PACING_POLL_SECONDS)

    def _deliver(self, message: Message) -> None:
        from_peer = PeerId(ID(message.from_id).to_base58())
        for topic in message.topicIDs:
            if topic in self._pubsub.topic_ids:
                self._received.append(GossipMessage(topic, bytes(message.data), from_peer))
        while len(self._received) > _RECEIVED_MAX:
            self._received.popleft()
            if self._dropped % _RECEIVED_MAX == 0:
                log.warning("gossip.dropped", dropped=self._dropped + 1)
            self._dropped += 1
        self._arrived.set()
        self._arrived = trio.Event()
