"""Fault: every dial waits 250 ms, a failed one blocks the peer for 60 s, most addresses are lost.

libp2p's `dial_peer` is therefore not used. `race_addresses` tries the addresses in their order,
the next one as soon as the last has failed or has taken `STAGGER_SECONDS`; the first to prove
the right peer id wins. Nothing is remembered: when to try again is the caller's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.library import (
    ID,
    BaseLibp2pError,
    Multiaddr,
    PeerIDMismatchesPubkey,
)

STAGGER_SECONDS: Final = 0.25
"""How long an address has for itself (RFC 8305). Nothing waits for this once one has won."""

ADDRESSES_MAX: Final = 16
"""More addresses than this no honest peer has."""

LIBRARY_ERRORS: Final = (
    BaseLibp2pError,
    OSError,
    ValueError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What libp2p lets through when a peer misbehaves or goes away."""


Dial = Callable[[Multiaddr, ID], Awaitable[Any]]
"""Connects to an address, if a certain peer answers there; returns libp2p's SwarmConn."""


async def race_addresses(
    dial: Dial,
    peer_id: ID,
    addresses: Sequence[Multiaddr],
    nursery: trio.Nursery,
    *,
    stagger_seconds: float = STAGGER_SECONDS,
) -> Any:  # noqa: ANN401 (libp2p's SwarmConn)
    """Connect to `peer_id` at the best of `addresses`.

    Args:
        dial: `dial_addr` of libp2p's Swarm, or another of its kind.
        peer_id: who must answer.
        addresses: IP addresses with ports, the best first.
        nursery: where a connection that came second is closed.
        stagger_seconds: what each address has for itself.

    Raises:
        NetworkError: none of them led to the peer; the message says why for each.
    """
    race = _Race(dial, peer_id, nursery)
    async with trio.open_nursery() as attempts:
        for address in addresses[:ADDRESSES_MAX]:
            failed = trio.Event()
            attempts.start_soon(race.attempt, address, failed, attempts.cancel_scope)
            with trio.move_on_after(stagger_seconds):
                await failed.wait()
    if race.winner is None:
        raise NetworkError("; ".join(race.failures) or "no address to dial")
    return race.winner


class _Race:
    """The attempts at one peer's addresses."""

    def __init__(self, dial: Dial, peer_id: ID, nursery: trio.Nursery) -> None:
        self._dial = dial
        self._peer_id = peer_id
        self._nursery = nursery
        self.winner: Any = None
        self.failures: list[str] = []

    async def attempt(
        self, address: Multiaddr, failed: trio.Event, everybody: trio.CancelScope
    ) -> None:
        try:
            connection = await self._dial(address, self._peer_id)
        except LIBRARY_ERRORS as error:
            self.failures.append(f"{address}: {_reason(error)}")
            failed.set()
            return
        if self.winner is None:
            self.winner = connection
            everybody.cancel()
        else:
            self._nursery.start_soon(connection.close)


def _reason(error: BaseException) -> str:
    """The innermost cause that says something, as libp2p wraps errors several times."""
    reason = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PeerIDMismatchesPubkey):
            return "another peer answered"
        reason = str(cause) or reason
        cause = cause.__cause__
    return reason
