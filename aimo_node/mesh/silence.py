"""Links in doubt: each is asked whether somebody is still at its other end, and ends if not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode
from aimo_node.mesh.link import Link

ANSWER_SECONDS: Final = 2.0
"""For the answer to a Ping when there is reason to doubt a link: many round trips, and a peer that
is as busy as one can be."""


async def end_silent(links: Iterable[Link], disconnect: Callable[[PeerId], Awaitable[None]]) -> int:
    """End those of `links` that do not answer within `ANSWER_SECONDS`; how many that were.

    Args:
        disconnect: closes the connection to a peer: the next dial would try the dead one first.
    """
    asked, asked_at = list(links), trio.current_time()
    for link in asked:
        link.probe()
    await trio.sleep(ANSWER_SECONDS)
    open_still = [link for link in asked if not link.closed.is_set()]
    silent = [link for link in open_still if link.session.heard_at < asked_at]
    async with trio.open_nursery() as nursery:
        for link in silent:
            link.close(CloseCode.PeerSilent, "no answer since this node looked")
            nursery.start_soon(disconnect, link.peer)
    return len(silent)
