"""Getting into the mesh and staying in it: a link to every relay this node was told to join."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import AimoError, CloseCode, JoinFailed, PermissionDenied
from aimo_node.mesh.network import MeshNetwork

log = structlog.get_logger()

FIRST_JOIN_SECONDS: Final = 30.0
"""A relay that starts at the same time is up by then; longer means something is wrong."""
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
"""Doubles from a tenth of a second; short in the end, since a relay serves hundreds of nodes and a
mesh without it is blind."""
STABLE_SECONDS: Final = 5.0
"""A link that ends sooner counts as a failure: else two nodes with one identity, which take each
other's place at the relay, would do so ten times a second."""

_REFUSED_US: Final = "is the join string, or --mesh-secret-file, the one of this relay?"
_NOT_CERTIFIED: Final = "the owner of the mesh can say more: aimo peers list"
_NO_RELAY: Final = "does the relay run, and can this machine reach its port?"


@dataclass(frozen=True, slots=True)
class RelayToJoin:
    """One relay this node was told to join.

    Attributes:
        problem: why the last try to link it failed; empty if it did not.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    problem: str


class Joiner:
    """Keeps links to the relays of a mesh."""

    def __init__(
        self,
        network: MeshNetwork,
        relays: Mapping[PeerId, Sequence[str]],
        chance: random.Random,
    ) -> None:
        """`relays`: addresses by peer id; `chance` spreads the redials of many nodes."""
        self._network = network
        self._relays = relays
        self._chance = chance
        self._joined = trio.Event()
        self._problems: dict[PeerId, AimoError] = {}
        self._refused = trio.Event()

    @property
    def joined(self) -> bool:
        """Whether a relay is linked now, or there is none to join."""
        return not self._relays or any(self._network.link(relay) for relay in self._relays)

    def relays(self) -> list[RelayToJoin]:
        """Every relay to join, and how that goes."""
        return [
            RelayToJoin(relay, tuple(addresses), str(self._problems.get(relay, "")))
            for relay, addresses in self._relays.items()
        ]

    async def run(self) -> None:
        """Dial, wait for the link to end, dial again; until cancelled or the node drains."""
        async with trio.open_nursery() as nursery:
            for relay, addresses in self._relays.items():
                nursery.start_soon(self._keep, relay, addresses)

    async def wait_joined(self) -> None:
        """Return once the first relay has let us in.

        Raises:
            JoinFailed: nobody did within `FIRST_JOIN_SECONDS`, or everybody refused us.
        """
        if not self._relays:
            return
        with trio.move_on_after(FIRST_JOIN_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_first, self._joined, nursery.cancel_scope)
                nursery.start_soon(_first, self._refused, nursery.cancel_scope)
        if not self._joined.is_set():
            problem = next(iter(self._problems.values()), "no answer")
            is_refused = isinstance(problem, PermissionDenied)
            refused = _NOT_CERTIFIED if self._network.certified else _REFUSED_US
            raise JoinFailed(
                f"cannot join the mesh: {problem}; " + (refused if is_refused else _NO_RELAY)
            )

    async def _keep(self, relay: PeerId, addresses: Sequence[str]) -> None:
        failures = 0
        while not self._network.draining:
            # again each time: a relay that also serves models is forgotten when it stops to
            self._network.remember(relay, addresses)
            try:
                link = await self._network.connect(relay)
            except AimoError as error:
                self._problem(relay, error)
                failures += 1
                await trio.sleep(self._backoff(failures))
                continue
            self._problems.pop(relay, None)
            self._joined.set()
            linked_at = trio.current_time()
            await link.closed.wait()
            is_stable = trio.current_time() - linked_at >= STABLE_SECONDS
            failures = 1 if is_stable else failures + 1
            if link.close_code is CloseCode.DuplicateLink and not is_stable:
                log.warning("join.displaced", relay=relay, hint="does another node use this state?")
            await trio.sleep(self._backoff(failures))

    def _problem(self, relay: PeerId, error: AimoError) -> None:
        log.info("join.failed", relay=relay, reason=str(error))
        self._problems[relay] = error
        refusals = [isinstance(problem, PermissionDenied) for problem in self._problems.values()]
        if len(refusals) == len(self._relays) and all(refusals):
            self._refused.set()

    def _backoff(self, failures: int) -> float:
        ceiling: float = min(BACKOFF_SECONDS * 2.0 ** min(failures, 10), BACKOFF_SECONDS_MAX)
        return ceiling * (0.5 + self._chance.random() / 2)


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
