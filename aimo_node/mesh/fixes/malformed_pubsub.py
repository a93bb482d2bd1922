"""Fault: one malformed packet on a pubsub stream ends the whole process.

So does an exception in any of the tasks pubsub starts for a message, a peer or a heartbeat; a
message with an undecodable key is enough. Besides, it listens to every stranger, and remembers
a message that a stranger delivered first as invalid.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.fixes.handler_errors import contain_task_errors
from aimo_node.mesh.fixes.library import BasicHost
from aimo_node.mesh.fixes.pubsub_library import ID, GossipSub, Message, Pubsub, PubsubNotifee

log = structlog.get_logger()

_ADMISSION_SECONDS_MAX: Final = 15.0
"""How long a pubsub stream may wait for its peer to be admitted; the link's Hello decides that."""

_ADMISSION_POLL_SECONDS: Final = 0.25

Accepts = Callable[[PeerId], bool]


class SturdyPubsub(Pubsub):  # type: ignore[misc]
    """A pubsub in which nothing a peer sends costs more than that peer's stream.

    Args:
        host: libp2p's host.
        router: the gossipsub router.
        accepts: whether a peer belongs to the mesh; nothing is said to or heard from others.
        deliver: called with every message for a topic of ours that somebody else published.
    """

    def __init__(
        self,
        host: BasicHost,
        router: GossipSub,
        accepts: Accepts,
        deliver: Callable[[Message], None],
    ) -> None:
        super().__init__(host, router, strict_signing=True)
        self._accepts = accepts
        self._deliver = deliver
        self._greeting: set[ID] = set()

    async def run(self) -> None:
        """Run the service; the tasks it starts end neither it nor the process."""
        start_task = self.manager.run_task

        def run_task(task: Callable[..., Awaitable[None]], *args: Any, **options: Any) -> None:  # noqa: ANN401
            start_task(contain_task_errors(task), *args, **options)

        self.manager.run_task = run_task
        await super().run()

    def greet(self, peer_id: ID) -> None:
        """Take up a peer that was connected before this service ran here, or there.

        libp2p tries once, when the connection is made, and gives up if the other side does not
        speak pubsub yet; from then on it hears that peer, but tells it nothing.
        """
        if peer_id not in self.peers:
            self.manager.run_task(self._handle_new_peer_with_retry, peer_id)

    def detach(self) -> None:
        """Leave the host: it tells this service of no more connections and streams."""
        network = self.host.get_network()
        for notifee in [one for one in network.notifees if isinstance(one, PubsubNotifee)]:
            network.remove_notifee(notifee)
        for protocol in self.protocols:
            self.host.remove_stream_handler(protocol)

    async def continuously_read_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Read RPCs from an admitted peer until the stream ends or one of them is malformed."""
        peer_id = stream.muxed_conn.peer_id
        if not await self._wait_for_admission(peer_id):
            await stream.reset()
            return
        self.greet(peer_id)
        try:
            await super().continuously_read_stream(stream)
        except Exception as error:  # noqa: BLE001 (whatever a decoder raises on foreign bytes)
            _log_malformed(peer_id, error)
            await stream.reset()

    async def push_msg(self, msg_forwarder: ID, msg: Message) -> None:
        """Handle a message, unless it came through somebody who is not (or no longer) admitted."""
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
        elif self._is_admitted(msg_forwarder):
            try:
                await super().push_msg(msg_forwarder, msg)
            except Exception as error:  # noqa: BLE001 (root of the message's task)
                _log_malformed(msg_forwarder, error)

    def notify_subscriptions(self, publish_message: Message) -> None:
        """Deliver a message; libp2p's own queue of 32 per topic is not used."""
        if publish_message.from_id != self.my_id.to_bytes():
            self._deliver(publish_message)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        if peer_id in self._greeting:
            return
        self._greeting.add(peer_id)
        try:
            if await self._wait_for_admission(peer_id):
                await super()._handle_new_peer(peer_id)
        finally:
            self._greeting.discard(peer_id)

    def _is_admitted(self, peer_id: ID) -> bool:
        return self._accepts(PeerId(peer_id.to_base58()))

    async def _wait_for_admission(self, peer_id: ID) -> bool:
        deadline = trio.current_time() + _ADMISSION_SECONDS_MAX
        while not self._is_admitted(peer_id):
            if trio.current_time() >= deadline or not self._peer_is_connected(peer_id):
                return False
            await trio.sleep(_ADMISSION_POLL_SECONDS)
        return True


def _log_malformed(peer_id: ID, error: Exception) -> None:
    # Without a traceback: the peer decides how often this is written.
    log.warning("gossip.malformed", peer=peer_id.to_base58(), reason=repr(error)[:200])
