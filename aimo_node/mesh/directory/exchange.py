"""Relays among themselves: each publishes, by gossipsub, the providers linked to it."""

from __future__ import annotations

import time
import uuid
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import CodedError, ProtocolError, RemoteProtocolError
from aimo_node.mesh.directory.gossip import Gossip
from aimo_node.mesh.directory.relay import RelayDirectory
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.identity import KeyPair, public_key_from_peer_id, sign
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol import codec, limits
from aimo_node.protocol.frames import Directory, FrameType, MessageBody, MessageFrame
from aimo_node.protocol.signing import message_bytes_to_sign

log = structlog.get_logger()

TOPIC: Final = "aimo/heartbeat"
FULL_SECONDS: Final = 10.0
"""Everything again: a relay that was not listening is complete after so long."""
_SKEW_OLD_MS: Final = int(limits.GOSSIP_OLDEST_SECONDS * 1000)
_SKEW_NEW_MS: Final = int(limits.GOSSIP_NEWEST_SECONDS * 1000)


class RelayExchange:
    """Publishes this relay's providers and learns those of others."""

    def __init__(
        self, identity: KeyPair, host: MeshHost, network: MeshNetwork, directory: RelayDirectory
    ) -> None:
        self._identity = identity
        self._host = host
        self._network = network
        self._directory = directory

    async def run(self) -> None:
        """Publish and listen until cancelled."""
        async with Gossip(self._host, accepts=self._is_relay) as gossip:
            await gossip.subscribe(TOPIC)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._publish, gossip)
                nursery.start_soon(self._listen, gossip)

    def _is_relay(self, peer: PeerId) -> bool:
        link = self._network.link(peer)
        return link is not None and Role.RELAY in link.roles & link.rights

    async def _publish(self, gossip: Gossip) -> None:
        told, full_at = 0, trio.current_time()
        while True:
            await trio.sleep(limits.DIRECTORY_SECONDS)
            if not gossip.neighbours(TOPIC):
                told = 0
                continue
            now = trio.current_time()
            if now >= full_at:
                told, full_at = 0, now + FULL_SECONDS
            revision = self._directory.book.revision
            for batch in self._directory.book.batches(told, own_only=True):
                await gossip.publish(TOPIC, self._sealed(batch))
            told = revision

    def _sealed(self, batch: Directory) -> bytes:
        """The batch in a MessageFrame, signed."""
        body = codec.encode_part(
            MessageBody(
                message_type=int(FrameType.Directory),
                id=uuid.uuid4().bytes,
                timestamp_ms=time.time_ns() // 1_000_000,
                sender_id=self._identity.peer_id,
                target_id="",
                payload=codec.encode_bare(batch),
            )
        )
        signature = sign(self._identity, message_bytes_to_sign(body))
        return codec.encode_part(MessageFrame(limits.VERSION, body, signature))

    async def _listen(self, gossip: Gossip) -> None:
        while True:
            message = await gossip.receive()
            try:
                sender, batch = _opened(message.data)
            except (ProtocolError, CodedError) as error:
                log.warning("gossip.refused", sender=message.from_peer, reason=str(error))
                continue
            if sender != message.from_peer:  # said by one, published by another: replayed
                log.warning("gossip.refused", sender=message.from_peer, reason="not its own words")
            elif sender != self._identity.peer_id:
                self._directory.learn(sender, batch)


def _opened(data: bytes) -> tuple[PeerId, Directory]:
    """Who says what.

    Raises:
        RemoteProtocolError: malformed, wrongly signed, outside the time window, or no batch.
        InvalidMessageFormat: the sender's id is none.
    """
    envelope = codec.decode_part(data, MessageFrame)
    body = codec.decode_part(envelope.body, MessageBody)
    sender = PeerId(body.sender_id)
    verify = public_key_from_peer_id(sender)
    if not verify(message_bytes_to_sign(envelope.body), envelope.signature):
        raise RemoteProtocolError("a MessageFrame is not signed by its sender")
    age_ms = time.time_ns() // 1_000_000 - body.timestamp_ms
    if not -_SKEW_NEW_MS <= age_ms <= _SKEW_OLD_MS:
        raise RemoteProtocolError(f"a MessageFrame is {age_ms} ms old: replayed, or a clock is off")
    batch = codec.decode(body.payload)
    if not isinstance(batch, Directory):
        raise RemoteProtocolError("a MessageFrame on this topic carries no Directory")
    return sender, batch
