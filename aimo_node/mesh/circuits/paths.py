"""Which way to a peer: its own addresses first, then circuits through relays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import NetworkError
from aimo_node.mesh.circuits.client import Circuits, is_circuit, relays_in
from aimo_node.mesh.fixes.direct_dial import STAGGER_SECONDS
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.link_stream import LinkStream

HEAD_START_SECONDS: Final = 0.5
"""What a peer's own addresses have for themselves once the last was begun: a router that drops what
it does not know lets them fail only at the deadline. They go on beside the circuits."""
RELAY_SECONDS: Final = 2.0
"""What one relay has for itself before the next is asked, too."""
_DIRECT: Final = "direct"


class Paths:
    """Dials for `MeshNetwork`, over whichever way is first to open.

    Args:
        host: dials directly.
        circuits: dials through relays.
        seconds_max: for all ways together.
    """

    def __init__(self, host: MeshHost, circuits: Circuits, *, seconds_max: float) -> None:
        self._host = host
        self._circuits = circuits
        self._seconds_max = seconds_max

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> LinkStream:
        """Open a link's stream to `peer`.

        Raises:
            NetworkError: no way leads there; the message says why for each.
        """
        direct = [address for address in addresses if not is_circuit(address)]
        circuits = relays_in(addresses, peer)
        if not circuits or self._circuits.is_bridge(peer):
            return await self._host.dial(peer, direct)
        race = _Race()
        with trio.move_on_after(self._seconds_max):
            async with trio.open_nursery() as nursery:
                failed = trio.Event()
                dial = partial(self._host.dial, peer, direct)
                nursery.start_soon(race.run, _DIRECT, dial, failed, nursery)
                head_start = HEAD_START_SECONDS + len(direct) * STAGGER_SECONDS
                with trio.move_on_after(head_start):
                    await failed.wait()
                for relay, places in circuits.items():
                    failed = trio.Event()
                    dial = partial(self._circuits.dial, peer, relay, places)
                    nursery.start_soon(race.run, relay, dial, failed, nursery)
                    with trio.move_on_after(RELAY_SECONDS):
                        await failed.wait()
        if race.winner is None:
            late = f"{peer} did not answer within {self._seconds_max:g} s"
            raise NetworkError("; ".join(race.failures.values()) or late)
        if race.winner.relay is not None:
            race.winner.reason += f": {race.why_not_direct(direct)}"
        return race.winner

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`, direct or not."""
        await self._host.disconnect(peer)


class _Race:
    """The ways to one peer; the first that opens wins and ends the others."""

    def __init__(self) -> None:
        self.winner: LinkStream | None = None
        self.failures: dict[str, str] = {}
        """Why which way failed."""

    def why_not_direct(self, addresses: Sequence[str]) -> str:
        """What became of the peer's own addresses while a circuit won."""
        if not addresses:
            return "no other address is known"
        if _DIRECT in self.failures:
            return f"direct dial failed: {self.failures[_DIRECT]}"
        return "no direct answer in time"

    async def run(
        self,
        way: str,
        attempt: Callable[[], Awaitable[LinkStream]],
        failed: trio.Event,
        nursery: trio.Nursery,
    ) -> None:
        try:
            stream = await attempt()
        except NetworkError as error:
            self.failures[way] = error.message
            failed.set()
            return
        if self.winner is None:
            self.winner = stream
            nursery.cancel_scope.cancel()
        else:
            await stream.reset()
