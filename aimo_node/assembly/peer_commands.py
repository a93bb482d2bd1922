"""The command ``node.peers`` of the control socket: who this node is linked to, over which path and
why, and which providers it knows besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aimo_node.assembly.control_socket import Command
from aimo_node.dispatch.inference import ProviderView
from aimo_node.domain.ids import PeerId, Role
from aimo_node.edge.native.providers import provider_view
from aimo_node.errors import ConfigError
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_facts import facts_of
from aimo_node.mesh.network import MeshNetwork

NODE_PEERS: Final = "node.peers"
PEERS_PER_ANSWER: Final = 200
"""An answer is one line of at most a megabyte; a provider with many models has a few kilobytes."""


def peer_commands(
    network: MeshNetwork, roles: Role, providers: Callable[[], Sequence[ProviderView]]
) -> Mapping[str, Command]:
    """The command by its name; it changes nothing.

    Args:
        providers: those that this node's edge knows; none if it is no edge.
    """

    async def peers(request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those behind the peer id ``after``, in their order; ``next`` is where to go on."""
        after = request.get("after", "")
        if not isinstance(after, str):
            raise ConfigError("'after' must be a peer id")
        links = {link.peer: link for link in network.links()}
        known = {view.peer: view for view in providers()}
        behind = sorted(peer for peer in links.keys() | known.keys() if peer > after)
        told = behind[:PEERS_PER_ANSWER]
        return {
            "node": {"peer_id": network.peer, "roles": roles.names},
            "data": [_peer(peer, links.get(peer), known.get(peer)) for peer in told],
            "next": told[-1] if len(behind) > len(told) else None,
        }

    return {NODE_PEERS: peers}


def _peer(peer: PeerId, link: Link | None, view: ProviderView | None) -> dict[str, Any]:
    known: dict[str, Any] = {"id": peer, "object": "peer", "models": []}
    if view is not None:
        known = provider_view(view)
    roles = link.roles if link is not None else Role.NONE
    if view is not None:
        roles |= Role.PROVIDER
    return {**known, "roles": roles.names, "linked": link is not None, **link_view(link)}


def link_view(link: Link | None) -> dict[str, Any]:
    """What the owner is told of a link; everything is null if there is none."""
    if link is None:
        names = ("path", "relay", "address", "round_trip_ms", "since", "since_seconds", "reason")
        return dict.fromkeys(names)
    facts = facts_of(link)
    return {
        "path": facts.path,
        "relay": facts.relay,
        "address": facts.address,
        "round_trip_ms": facts.round_trip_ms,
        "since": facts.since,
        "since_seconds": round(facts.open_seconds),
        "reason": facts.reason,
    }
