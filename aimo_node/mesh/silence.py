"""Links in doubt: each is asked whether somebody is still at its other end, and ends if not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from aimo_node.errors import CloseCode
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork

ANSWER_SECONDS: Final = 2.0
"""For the answer to a Ping when there is reason to doubt a link: many round trips, and a peer that
is as busy as one can be."""


async def check_links(network: MeshNetwork) -> int:
    """Ask every peer whether it is still there, now; end links and dials that get no answer within
    `ANSWER_SECONDS`. How many links that were."""
    asked_at = trio.current_time()
    ended = await end_silent(network, [one for one in network.links() if one.peer != network.peer])
    network.dials.give_up(asked_at)
    return ended


async def end_silent(network: MeshNetwork, links: Iterable[Link]) -> int:
    """End those of `links` that do not answer within `ANSWER_SECONDS`; how many that were."""
    asked, asked_at = list(links), trio.current_time()
    for link in asked:
        link.probe()
    await trio.sleep(ANSWER_SECONDS)
    open_still = [link for link in asked if not link.closed.is_set()]
    silent = [link for link in open_still if link.session.heard_at < asked_at]
    async with trio.open_nursery() as nursery:
        for link in silent:
            link.close(CloseCode.PeerSilent, "no answer since this node looked")
            # or the next dial would try the same connection first
            nursery.start_soon(network.disconnect, link.peer)
    return len(silent)
