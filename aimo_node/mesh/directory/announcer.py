"""The provider's voice: its signed descriptor and its heartbeats, to every relay it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import Role
from aimo_node.domain.models import Descriptor, Health, Status
from aimo_node.errors import LocalProtocolError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import frames, limits
from aimo_node.protocol.descriptors import describe, heartbeat_of
from aimo_node.protocol.signing import descriptor_bytes_to_sign

log = structlog.get_logger()

LOOK_SECONDS: Final = 0.5
"""How long a change may go unnoticed: an engine that dies tells nobody."""
SAYINGS_MAX: Final = 4
"""At once; in the long run one per `LOOK_SECONDS`. Each is two frames, and relays cut off peers
that send more than eight a second."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Where the announcer asks what to say.

    Attributes:
        describe: the descriptor now; its revision is filled in here. Asked twice a second.
        status: the status now; its seq is filled in here. Asked only when there is something to
            offer.
    """

    describe: Callable[[], Descriptor]
    status: Callable[[], Status]


class Announcer(IdleObserver):
    """Tells relays what this provider offers and how it is.

    A node that has never had a model or an engine says nothing: it may become a provider later. One
    that has none any more says so once.
    """

    def __init__(self, identity: KeyPair, network: MeshNetwork, voice: Voice) -> None:
        self._identity = identity
        self._network = network
        self._voice = voice
        self._seen: Descriptor | None = None
        """As it was when it was looked at last."""
        self._signed: frames.Descriptor | None = None
        """As it was said last."""
        self._offers = False
        """Whether there is anything in what was said last."""
        self._revision = 0
        self._seq = 0
        self._health: Health | None = None
        """As it was said last."""
        self._changed = trio.Event()

    async def run(self) -> None:
        """Heartbeats every 5 s, at once on a change, the descriptor again every 10 minutes."""
        started = trio.current_time()
        sayings = Allowance(SAYINGS_MAX, 1 / LOOK_SECONDS, started)
        repeat_at, heartbeat_at = started + limits.DESCRIPTOR_SECONDS, started
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._changed.wait()
            now = trio.current_time()
            if not (self._has_news() or now >= heartbeat_at):
                continue
            if not sayings.take(now):
                await trio.sleep(LOOK_SECONDS)
                continue
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
        self._say(again=again)

    def link_opened(self, link: Link) -> None:
        """A relay hears everything at once, and so do the others if something is new."""
        if Role.RELAY in link.roles:
            self._say(newcomer=link)

    def _say(self, *, again: bool = False, newcomer: Link | None = None) -> None:
        signed, is_new = self._refresh()
        if signed is None or not (is_new or self._offers):
            return
        heartbeat = self._heartbeat()
        for link in self._network.links() if newcomer is None or is_new else (newcomer,):
            if Role.RELAY in link.roles:
                if again or is_new or link is newcomer:
                    link.announce(signed)
                link.announce(heartbeat)

    def _has_news(self) -> bool:
        if self._changed.is_set() or self._look() != self._seen:
            return True
        return self._offers and self._voice.status().health is not self._health

    def _look(self) -> Descriptor:
        return replace(self._voice.describe(), revision=0)

    def _heartbeat(self) -> frames.Heartbeat:
        self._seq += 1
        status = self._voice.status()
        self._health = status.health
        return heartbeat_of(replace(status, seq=self._seq))

    def _refresh(self) -> tuple[frames.Descriptor | None, bool]:
        """The signed descriptor, and whether it is not what was said last; None if there was never
        anything to say."""
        descriptor = self._look()
        if descriptor == self._seen:
            return self._signed, False
        self._seen = descriptor
        offers = bool(descriptor.models or descriptor.engines)
        if not offers and self._signed is None:
            return None, False
        try:
            self._signed = self._sign(replace(descriptor, revision=self._revision + 1))
        except LocalProtocolError as error:
            # Nothing to end a node for that serves others already: its owner has to act.
            log.warning("descriptor.not_announced", reason=str(error))
            return self._signed, False
        self._revision += 1
        self._offers = offers
        return self._signed, True

    def _sign(self, descriptor: Descriptor) -> frames.Descriptor:
        body = describe(descriptor)
        return frames.Descriptor(body, sign(self._identity, descriptor_bytes_to_sign(body)))
