"""Dials under way, one for each peer: whoever wants the same peer waits for the same one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CodedError, NetworkError
from aimo_node.mesh.link import Link

log = structlog.get_logger()

DIALS_MAX: Final = 256
"""Dials at a time: each holds sockets for up to ten seconds, whoever still waits for it."""


class _Dial:
    """One dial, and everybody who waits for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.link: Link | None = None
        self.error: CodedError = NetworkError("the node is shutting down")
        self.begun_at = trio.current_time()
        self.scope = trio.CancelScope()


class Dials:
    """The dials of one node. Each goes on if who waits for it is cancelled."""

    def __init__(
        self,
        reach: Callable[[PeerId], Awaitable[Link]],
        failed: Callable[[PeerId], Awaitable[None]],
    ) -> None:
        """
        Args:
            reach: dials a peer. May raise a CodedError.
            failed: called after a dial that gave no link.
        """
        self._reach = reach
        self._failed = failed
        self._dials: dict[PeerId, _Dial] = {}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._dials

    def __len__(self) -> int:
        return len(self._dials)

    async def join(self, peer: PeerId, nursery: trio.Nursery) -> Link:
        """Wait for the dial of a peer, begun in `nursery` if there is none.

        Raises:
            CodedError: what `reach` raised.
            NetworkError: too many dials, or this one was given up.
        """
        dial = self._dials.get(peer)
        if dial is None:
            if len(self._dials) >= DIALS_MAX:
                raise NetworkError(f"this node dials {DIALS_MAX} peers already")
            dial = self._dials[peer] = _Dial()
            nursery.start_soon(self._run, peer, dial)
        await dial.done.wait()
        if dial.link is None:
            raise type(dial.error)(dial.error.message)  # one of its own for everybody who waits
        return dial.link

    def give_up(self, begun_before: float) -> None:
        """End those that still wait, as for an answer in a network that this node has left."""
        for dial in self._dials.values():
            if dial.begun_at < begun_before:
                dial.scope.cancel()

    async def _run(self, peer: PeerId, dial: _Dial) -> None:
        try:
            with dial.scope:
                dial.link = await self._reach(peer)
            if dial.scope.cancelled_caught:
                dial.error = NetworkError("no answer since the network changed")
        except CodedError as error:
            dial.error = error
        except Exception:  # the root of a dial's task: it must not take the node down
            log.exception("dial.crashed", peer=peer)
            dial.error = NetworkError(f"cannot dial {peer}; the log says why")
        finally:
            del self._dials[peer]
            dial.done.set()
        if dial.link is None:
            await self._failed(peer)
