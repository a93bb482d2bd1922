"""The provider's voice: its signed descriptor and its heartbeats, to every relay it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from aimo_node.domain.ids import Role
from aimo_node.domain.models import Descriptor, Health, Status
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import frames, limits
from aimo_node.protocol.descriptors import describe, heartbeat_of
from aimo_node.protocol.signing import descriptor_bytes_to_sign

LOOK_SECONDS: Final = 0.5
"""How long a change of health may go unnoticed: an engine that dies tells nobody."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Where the announcer asks what to say.

    Attributes:
        describe: the descriptor now; its revision is filled in here.
        status: the status now; its seq is filled in here.
    """

    describe: Callable[[], Descriptor]
    status: Callable[[], Status]


class Announcer(IdleObserver):
    """Tells relays what this provider offers and how it is."""

    def __init__(self, identity: KeyPair, network: MeshNetwork, voice: Voice) -> None:
        self._identity = identity
        self._network = network
        self._voice = voice
        self._signed: frames.Descriptor | None = None
        self._said: Descriptor | None = None
        self._revision = 0
        self._seq = 0
        self._health: Health | None = None
        """As it was said last."""
        self._changed = trio.Event()

    async def run(self) -> None:
        """Heartbeats every 5 s, at once on a change, the descriptor again every 10 minutes."""
        started = trio.current_time()
        repeat_at, heartbeat_at = started + limits.DESCRIPTOR_SECONDS, started
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._changed.wait()
            now = trio.current_time()
            is_news = self._changed.is_set() or self._voice.status().health is not self._health
            if is_news or now >= heartbeat_at:
                self._changed = trio.Event()
                self.announce(again=now >= repeat_at)
                heartbeat_at = now + limits.HEARTBEAT_SECONDS
            if now >= repeat_at:
                repeat_at = now + limits.DESCRIPTOR_SECONDS

    def changed(self) -> None:
        """The status or the descriptor is not what it was: say so now."""
        self._changed.set()

    def announce(self, *, again: bool = False) -> None:
        """Tell every relay what is new; `again` repeats a descriptor that did not change."""
        signed, is_new = self._refresh()
        heartbeat = self._heartbeat()
        for link in self._network.links():
            if Role.RELAY in link.roles:
                if again or is_new:
                    link.announce(signed)
                link.announce(heartbeat)

    def link_opened(self, link: Link) -> None:
        """A relay hears everything at once."""
        if Role.RELAY in link.roles:
            signed, _ = self._refresh()
            link.announce(signed)
            link.announce(self._heartbeat())

    def _heartbeat(self) -> frames.Heartbeat:
        self._seq += 1
        status = self._voice.status()
        self._health = status.health
        return heartbeat_of(replace(status, seq=self._seq))

    def _refresh(self) -> tuple[frames.Descriptor, bool]:
        """The signed descriptor, and whether it is not what was said last."""
        descriptor = replace(self._voice.describe(), revision=0)
        if self._signed is not None and descriptor == self._said:
            return self._signed, False
        self._said = descriptor
        self._revision += 1
        self._signed = self._sign(replace(descriptor, revision=self._revision))
        return self._signed, True

    def _sign(self, descriptor: Descriptor) -> frames.Descriptor:
        body = describe(descriptor)
        return frames.Descriptor(body, sign(self._identity, descriptor_bytes_to_sign(body)))
