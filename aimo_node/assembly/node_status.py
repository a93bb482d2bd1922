"""The command ``node.status`` of the control socket: what only the running node knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aimo_node import __version__
from aimo_node.assembly.control_socket import Command
from aimo_node.assembly.engine_commands import report
from aimo_node.assembly.peer_commands import link_view
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.ids import Role
from aimo_node.mesh.joiner import Joiner, RelayToJoin
from aimo_node.mesh.link import Link
from aimo_node.mesh.network import MeshNetwork

NODE_STATUS: Final = "node.status"
LINKS_TOLD_MAX: Final = 256
"""An answer is one line of at most a megabyte; a relay may have a thousand links."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the answer is made of.

    Attributes:
        ready: whether the node can be used.
        listen: addresses with the ports that were bound.
        http: URL of the HTTP door, None without.
        service: the engines; None where there is no provider's side.
    """

    roles: Role
    network: MeshNetwork
    joiner: Joiner
    ready: Callable[[], bool]
    listen: Callable[[], list[str]]
    http: Callable[[], str | None]
    service: ProviderService | None = None


def status_command(parts: NodeParts) -> Mapping[str, Command]:
    """The command by its name; it changes nothing."""

    async def status(_request: Mapping[str, Any]) -> Mapping[str, Any]:
        links = list(parts.network.links())
        engines = parts.service.engines if parts.service is not None else ()
        return {
            "peer_id": parts.network.peer,
            "version": __version__,
            "roles": parts.roles.names,
            "ready": parts.ready(),
            "listen": parts.listen(),
            "http": parts.http(),
            "relays": [_relay(relay, parts.network) for relay in parts.joiner.relays()],
            "links_open": len(links),
            "links": [_link(link) for link in links[:LINKS_TOLD_MAX]],
            "engines": [report(engine) for engine in engines],
        }

    return {NODE_STATUS: status}


def _relay(relay: RelayToJoin, network: MeshNetwork) -> dict[str, Any]:
    return {
        "peer": relay.peer,
        "addresses": list(relay.addresses),
        "told": relay.told,
        "linked": network.link(relay.peer) is not None,
        "problem": relay.problem,
    }


def _link(link: Link) -> dict[str, Any]:
    hello = link.session.hello
    return {
        "peer": link.peer,
        "roles": link.roles.names,
        "agent": hello.agent if hello is not None else "",
        **link_view(link),
    }
