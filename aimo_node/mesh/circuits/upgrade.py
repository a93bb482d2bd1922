"""When to look for a direct way to a peer on a circuit, when to try again, when to let it be.

Plain bookkeeping: the clock is the caller's, in seconds of any steady one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.allowance import Allowance

START_SECONDS: Final = 0.1
"""After a circuit's link has opened: whoever opened it has first something to ask."""
PAUSES_SECONDS: Final = (10.0, 60.0, 300.0, 1800.0)
"""After the first failure, the second, and so on; the last one for good."""
TRIES_MAX: Final = 8
"""Rounds at a time that this node begins: each may hold sixteen sockets for fifteen seconds."""
ROUNDS_AT_ONCE: Final = 3
ROUNDS_PER_SECOND: Final = 1 / 60
"""For each peer, what it can cause: a round when it asks for one, or comes with a new circuit."""
PEERS_MAX: Final = 1024
"""Peers that are remembered. Those on a circuit always are; each of them holds a connection."""


@dataclass(slots=True)
class _Peer:
    """What is known of one peer.

    Attributes:
        due: when to begin a round; None for not by ourselves.
        failures: rounds in a row.
        on_circuit: whether its link is a circuit now.
        accepted: whether it made the circuit. Then it is for this node to begin.
    """

    allowance: Allowance
    due: float | None = None
    failures: int = 0
    on_circuit: bool = False
    accepted: bool = False
    running: bool = False


class UpgradeBook:
    """Who is due. One round at a time for each peer, `TRIES_MAX` in all."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, _Peer] = {}
        self._running = 0

    def circuit_opened(self, peer: PeerId, now: float, *, accepted: bool) -> None:
        """A link over a circuit is there. `accepted`: the peer made it, so this node begins.

        The pause after failures ends, since the peer may have moved; but not as often as it likes.
        """
        entry = self._entry(peer, now)
        entry.on_circuit, entry.accepted = True, accepted
        if accepted:
            is_soon = entry.allowance.take(now)
            later = now + 1 / ROUNDS_PER_SECOND if entry.due is None else entry.due
            entry.due = now + START_SECONDS if is_soon else later

    def left(self, peer: PeerId) -> None:
        """The link to the peer has ended, or is a direct one."""
        entry = self._peers.get(peer)
        if entry is not None:
            entry.on_circuit = False

    def begin(self, now: float) -> list[PeerId]:
        """Whose round begins now; each is to be ended by `failed` or `succeeded`."""
        begun = []
        for peer, entry in self._peers.items():
            if self._running >= TRIES_MAX:
                break
            if self._waits(entry) and entry.due is not None and entry.due <= now:
                entry.running = True
                self._running += 1
                begun.append(peer)
        return begun

    def is_running(self, peer: PeerId) -> bool:
        """Whether this node has begun a round with the peer."""
        entry = self._peers.get(peer)
        return entry is not None and entry.running

    def failed(self, peer: PeerId, now: float) -> None:
        """The round has come to nothing: try again later, and later each time."""
        entry = self._end(peer)
        pause = PAUSES_SECONDS[min(entry.failures, len(PAUSES_SECONDS) - 1)]
        entry.failures += 1
        entry.due = now + pause if entry.accepted else None

    def succeeded(self, peer: PeerId) -> None:
        """There is a direct link."""
        entry = self._end(peer)
        entry.failures = 0
        entry.due = None

    def retry_now(self, now: float) -> None:
        """The networks have changed: what failed may work, whoever made the circuit."""
        for entry in self._peers.values():
            entry.failures = 0
            entry.due = now if entry.on_circuit else None

    def may_answer(self, peer: PeerId, now: float) -> bool:
        """Whether to take part in a round that the peer begins."""
        entry = self._entry(peer, now)
        if entry.running and entry.accepted:
            return False  # ours is the one; the peer sees it end there
        return entry.on_circuit and entry.allowance.take(now)

    def next_at(self) -> float:
        """When the next round is due; infinity if none is, or none may begin before one ends."""
        if self._running >= TRIES_MAX:
            return math.inf
        waiting = [one.due for one in self._peers.values() if self._waits(one)]
        return min((due for due in waiting if due is not None), default=math.inf)

    def _waits(self, entry: _Peer) -> bool:
        return entry.on_circuit and not entry.running

    def _end(self, peer: PeerId) -> _Peer:
        entry = self._peers[peer]
        entry.running = False
        self._running -= 1
        return entry

    def _entry(self, peer: PeerId, now: float) -> _Peer:
        entry = self._peers.get(peer)
        if entry is None:
            self._make_room()
            allowance = Allowance(ROUNDS_AT_ONCE, ROUNDS_PER_SECOND, now)
            entry = self._peers[peer] = _Peer(allowance)
        return entry

    def _make_room(self) -> None:
        """Forget who came first and is gone."""
        if len(self._peers) < PEERS_MAX:
            return
        for peer, entry in self._peers.items():
            if not entry.on_circuit and not entry.running:
                del self._peers[peer]
                return
