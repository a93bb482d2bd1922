"""Two links to one peer: which one stays, the same at both ends, and how the other one ends."""

from __future__ import annotations

from typing import Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode
from aimo_node.mesh.link import Link

HANDOVER_SECONDS: Final = 5.0
"""What a circuit's link stays for after a direct one has taken its place: until the peer has heard
so too, it sends requests over it."""

_DIRECT: Final = "direct"


def survivor(own: PeerId, old: Link, new: Link) -> Link:
    """The one that stays; see `docs/protocol/v1.md`, "Both dial at once".

    Of two links opened from both ends the one that the smaller peer id opened, but a direct one
    before a circuit; of two opened from the same end the new one, since its opener must have lost
    the old one, or found a better path. Nor is an old one worth keeping that is silent or on its
    way out.

    Args:
        own: this node.
    """
    if not old.usable or old.session.suspect:
        return new
    if old.stream.initiator == new.stream.initiator:
        return new
    if old.path != new.path:
        return old if old.path == _DIRECT else new
    ours_survives = own < old.peer
    return old if old.stream.initiator == ours_survives else new


def is_upgrade(old: Link, new: Link) -> bool:
    """Whether a link that works is replaced by one with a better path."""
    return old.usable and old.path != _DIRECT and new.path == _DIRECT


def retire(link: Link) -> None:
    """End a link that another one replaces, once nothing runs on it."""
    if link.session.busy:
        link.drain()
    else:
        link.close(CloseCode.DuplicateLink, "there is another link between us")


async def hand_over(link: Link) -> None:
    """End a link that works in favour of a better one, when the peer uses that, too."""
    with trio.move_on_after(HANDOVER_SECONDS):
        await link.closed.wait()
    retire(link)
