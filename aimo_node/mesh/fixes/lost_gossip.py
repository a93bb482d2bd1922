"""Fault: a message published before gossipsub's mesh has formed goes to nobody.

Gossipsub 1.1 asks that a node flood what it publishes itself; libp2p does not. And an error in
the heartbeat ends the process.
"""

from __future__ import annotations

from collections.abc import Iterable

from aimo_node.mesh.fixes.handler_errors import contain_task_errors
from aimo_node.mesh.fixes.pubsub_library import ID, GossipSub


class SturdyGossipSub(GossipSub):  # type: ignore[misc]
    """A router whose heartbeat survives its own errors, and that floods what this node says."""

    async def heartbeat(self) -> None:
        """Beat for ever."""
        while True:
            await contain_task_errors(super().heartbeat)()

    def _get_peers_to_send(
        self,
        topic_ids: Iterable[str],
        msg_forwarder: ID,
        origin: ID,
        msg_id: bytes | None = None,
    ) -> set[ID]:
        topics = list(topic_ids)
        peers = set(super()._get_peers_to_send(topics, msg_forwarder, origin, msg_id))
        if msg_forwarder == self.pubsub.my_id:
            for topic in topics:
                peers |= self.pubsub.peer_topics.get(topic, set())
        return peers
