"""Getting into the mesh and staying in it: links to the relays this node was told to join, and to
others that it learned of, so that it has two while one dies."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import AimoError, CloseCode, JoinFailed, NetworkError, PermissionDenied
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.mesh.relays.book import LINKED_WANTED, KnownRelay, RelayBook, learned_to_dial

log = structlog.get_logger()

FIRST_JOIN_SECONDS: Final = 30.0
"""A relay that starts at the same time is up by then; longer means something is wrong."""
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
"""Doubles from a tenth of a second; short in the end, since a relay serves hundreds of nodes and a
mesh without it is blind."""
SPARE_BACKOFF_SECONDS_MAX: Final = 60.0
"""The same for one that was learned of while another is linked: it may be gone for good."""
STABLE_SECONDS: Final = 5.0
"""A link that ends sooner counts as a failure: else two nodes with one identity, which take each
other's place at the relay, would do so ten times a second."""
HEAD_START_SECONDS: Final = 1.0
"""For the relays this node was told to join, before others take their place."""
LOOK_SECONDS: Final = 1.0
"""How often it is seen whether a pause is over; what happens on links is noticed at once."""

_REFUSED_US: Final = "is the join string, or --mesh-secret-file, the one of this relay?"
_NOT_CERTIFIED: Final = "the owner of the mesh can say more: aimo peers list"
_NO_RELAY: Final = "does the relay run, and can this machine reach its port?"


@dataclass(frozen=True, slots=True)
class RelayToJoin:
    """One relay that this node is linked to, or was told to join.

    Attributes:
        told: whether its owner named it; else other relays did.
        problem: why the last try to link it failed; empty if it did not.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    told: bool
    problem: str


class Joiner(IdleObserver):
    """Keeps links to relays of a mesh: to all that were told, and to enough of the others. A relay
    keeps links to all it knows."""

    def __init__(
        self,
        network: MeshNetwork,
        book: RelayBook,
        chance: random.Random,
        *,
        joins_all: bool = False,
    ) -> None:
        """`chance` spreads the dials of many nodes; `joins_all`: this node is a relay."""
        self._network = network
        self._book = book
        self._chance = chance
        self._joins_all = joins_all
        self._joined = trio.Event()
        self._problems: dict[PeerId, AimoError] = {}
        self._refused = trio.Event()
        self._retry = trio.Event()
        self._news = trio.Event()
        self._trying: set[PeerId] = set()
        self._failed_at: dict[PeerId, float] = {}
        self._opened_at: dict[PeerId, float] = {}
        self._short_since = 0.0
        """When this node came to have fewer relays than it wants."""

    @property
    def joined(self) -> bool:
        """Whether a relay is linked now, or there is none to join."""
        return not self._book.told or bool(self._linked())

    def relays(self) -> list[RelayToJoin]:
        """Every relay to join and every one that is linked, and how that goes."""
        linked = self._linked()
        return [
            RelayToJoin(
                relay.peer,
                relay.addresses,
                bool(relay.told),
                str(self._problems.get(relay.peer, "")),
            )
            for relay in self._book
            if relay.told or relay.peer in linked
        ]

    async def run(self) -> None:
        """Dial, wait for links to end, dial again; until cancelled or the node drains."""
        self._book.watch(self._look)
        self._network.add_observer(self)
        self._short_since = trio.current_time()
        async with trio.open_nursery() as nursery:
            for relay in self._book.told:
                nursery.start_soon(self._keep, relay)
            while not self._network.draining:
                self._news = trio.Event()
                self._note_links(trio.current_time())
                for relay in self._learned_due(trio.current_time()):
                    self._trying.add(relay)
                    nursery.start_soon(self._try, relay)
                with trio.move_on_after(LOOK_SECONDS):
                    await self._news.wait()

    async def wait_joined(self) -> None:
        """Return once the first relay has let us in.

        Raises:
            JoinFailed: nobody did within `FIRST_JOIN_SECONDS`, or everybody refused us.
        """
        if not self._book.told:
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

    def retry_now(self) -> None:
        """What failed may do now, as after a change of networks: begin anew, at once."""
        self._failed_at.clear()
        self._retry.set()
        self._retry = trio.Event()
        self._news.set()

    def link_opened(self, link: Link) -> None:
        """A relay may be there, whoever dialled."""
        self._look()

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """A relay may be gone: one that was not there for long rests before it is dialled again."""
        opened_at = self._opened_at.pop(link.peer, None)
        if opened_at is not None:
            self._book.linked(link.peer, _now_ms())
            if trio.current_time() - opened_at < STABLE_SECONDS:
                self._note_failure(link.peer)
        self._look()

    def link_changed(self, link: Link) -> None:
        """A relay that drains is as good as gone."""
        self._look()

    def _look(self) -> None:
        self._news.set()

    def _linked(self) -> set[PeerId]:
        return {relay.peer for relay in self._book if self._is_linked(relay)}

    def _is_linked(self, relay: KnownRelay) -> bool:
        link = self._network.link(relay.peer)
        if link is None or not link.usable:
            return False
        return bool(relay.told) or Role.RELAY in link.roles

    def _note_links(self, now: float) -> None:
        """One that links to this node may become known as a relay only after that."""
        for peer in self._linked() - self._opened_at.keys():
            self._opened_at[peer] = now
            self._book.linked(peer, _now_ms())

    def _learned_due(self, now: float) -> list[PeerId]:
        """Which learned relays to dial now."""
        linked = self._linked()
        count = (len(self._book) if self._joins_all else LINKED_WANTED) - len(linked)
        if count <= 0:
            self._short_since = float("inf")
            return []
        self._short_since = min(self._short_since, now)
        head_start = HEAD_START_SECONDS if self._book.told and not self._joins_all else 0.0
        if now < self._short_since + head_start:
            return []
        backoff_max = SPARE_BACKOFF_SECONDS_MAX if linked else BACKOFF_SECONDS_MAX
        resting = {relay.peer for relay in self._book if self._rests(relay, now, backoff_max)}
        unfit = linked | self._trying | resting
        return learned_to_dial(self._book, count - len(self._trying), unfit, self._chance)

    def _rests(self, relay: KnownRelay, now: float, backoff_max: float) -> bool:
        failed_at = self._failed_at.get(relay.peer)
        pause = min(BACKOFF_SECONDS * 2.0 ** min(relay.failures, 10), backoff_max)
        return failed_at is not None and now < failed_at + pause

    async def _try(self, relay: PeerId) -> None:
        """Dial a learned relay once; its link is nobody's to wait for."""
        try:
            link = await self._dial(relay)
            if Role.RELAY not in link.roles:
                raise NetworkError("it is no relay any more")
        except PermissionDenied as error:
            log.info("relay.forgotten", relay=relay, reason=str(error))
            self._book.forget(relay)
        except AimoError as error:
            log.info("join.failed", relay=relay, reason=str(error))
            self._note_failure(relay)
        else:
            self._joined.set()
        finally:
            self._trying.discard(relay)
            self._look()

    async def _dial(self, relay: PeerId) -> Link:
        known = self._book.get(relay)
        if known is not None:
            # again each time: a relay that also serves models is forgotten when it stops to
            self._network.remember(relay, known.addresses)
        return await self._network.connect(relay)

    def _note_failure(self, relay: PeerId) -> None:
        self._book.failed(relay)
        self._failed_at[relay] = trio.current_time()
        if len(self._failed_at) > 2 * len(self._book):
            self._failed_at = {one: at for one, at in self._failed_at.items() if one in self._book}

    async def _keep(self, relay: PeerId) -> None:
        failures = 0
        while not self._network.draining:
            try:
                link = await self._dial(relay)
            except AimoError as error:
                self._problem(relay, error)
                failures = await self._pause(failures + 1)
                continue
            self._problems.pop(relay, None)
            self._joined.set()
            linked_at = trio.current_time()
            await link.closed.wait()
            is_stable = trio.current_time() - linked_at >= STABLE_SECONDS
            failures = 1 if is_stable else failures + 1
            if link.close_code is CloseCode.DuplicateLink and not is_stable:
                log.warning("join.displaced", relay=relay, hint="does another node use this state?")
            failures = await self._pause(failures)

    async def _pause(self, failures: int) -> int:
        """Wait before the next dial; the failures that count from then on."""
        with trio.move_on_after(self._backoff(failures)) as scope:
            await self._retry.wait()
        return failures if scope.cancelled_caught else 0

    def _problem(self, relay: PeerId, error: AimoError) -> None:
        log.info("join.failed", relay=relay, reason=str(error))
        self._problems[relay] = error
        refusals = [isinstance(problem, PermissionDenied) for problem in self._problems.values()]
        if len(refusals) == len(self._book) and all(refusals):
            self._refused.set()

    def _backoff(self, failures: int) -> float:
        ceiling: float = min(BACKOFF_SECONDS * 2.0 ** min(failures, 10), BACKOFF_SECONDS_MAX)
        return ceiling * (0.5 + self._chance.random() / 2)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
