"""The ready line: what a long-running command says once, when it can be used."""

from __future__ import annotations

import json
from dataclasses import dataclass

from aimo_node.domain.ids import ModelName, PeerId, Role


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """What a node that has just become ready tells scripts and service managers.

    Attributes:
        listen: multiaddrs with the ports that were bound, each ending in ``/p2p/PEER``.
        http: URL of the HTTP door, or None when there is none.
        models: what this node itself serves.
        join: what another node's ``--join`` takes (relay and up); it carries the mesh secret.
        paused: whether its owner has paused the provider, so that it takes no requests.
    """

    peer_id: PeerId
    roles: Role
    listen: tuple[str, ...] = ()
    http: str | None = None
    models: tuple[ModelName, ...] = ()
    join: str | None = None
    paused: bool = False

    def to_json(self) -> str:
        """One line of JSON without a line end; every key is always there."""
        return json.dumps(
            {
                "ready": True,
                "peer_id": self.peer_id,
                "roles": self.roles.names,
                "listen": list(self.listen),
                "http": self.http,
                "models": list(self.models),
                "join": self.join,
                "paused": self.paused,
            },
            ensure_ascii=False,
        )
