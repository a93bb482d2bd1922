"""Which mesh a node belongs to: its secret, the relays it joins, what others need to join it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aimo_node.config.settings import Settings
from aimo_node.domain.ids import PeerId
from aimo_node.domain.join import JoinTarget, format_join, peer_of_address
from aimo_node.errors import ConfigError
from aimo_node.mesh.secret import load_or_make_secret, read_secret

SECRET_FILE: Final = "mesh.secret"  # noqa: S105 (a file name)


def mesh_secret(settings: Settings, targets: Sequence[JoinTarget]) -> bytes | None:
    """The secret of the mesh this node is in; None for an open one.

    A file that was named wins over join strings; a node that joins nobody has a mesh of its own
    and makes a secret at its first start.

    Raises:
        ConfigError: no secret to join with, or two different ones.
    """
    mesh = settings.mesh
    if mesh.open:
        return None
    if mesh.secret_file is not None:
        return read_secret(mesh.secret_file)
    found = {target.secret for target in targets if target.secret is not None}
    if len(found) > 1:
        raise ConfigError("the join strings are of different meshes: give those of one mesh")
    if found:
        return found.pop()
    if targets:
        raise ConfigError(
            "a closed mesh wants its secret: join with the whole string the relay printed, or "
            "give --mesh-secret-file (or --open if the mesh is open)"
        )
    return load_or_make_secret(settings.node.state / SECRET_FILE)


def relays_of(targets: Sequence[JoinTarget], own: PeerId) -> dict[PeerId, list[str]]:
    """Addresses to dial by peer id, this node itself left out."""
    relays: dict[PeerId, list[str]] = {}
    for target in targets:
        for address in target.addresses:
            peer = peer_of_address(address)
            if peer != own:
                relays.setdefault(peer, []).append(address)
    return relays


def join_string(addresses: Sequence[str], secret: bytes | None) -> str | None:
    """What another node's ``--join`` takes; None if this node listens nowhere."""
    return format_join(JoinTarget(tuple(addresses), secret)) if addresses else None
