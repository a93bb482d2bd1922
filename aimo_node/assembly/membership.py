"""Which mesh a node belongs to, by secret or by certificate, and what others need to join it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import trio

from aimo_node import __version__
from aimo_node.assembly.certified import CERTIFIED_FILES, AuthorityMembership, mesh_of_state
from aimo_node.assembly.control_socket import Command
from aimo_node.config.settings import Settings
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.join import JoinTarget, format_join, peer_of_address
from aimo_node.errors import ConfigError
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.membership.credential import CERTIFICATE_FILE
from aimo_node.mesh.membership.secret import load_or_make_secret, read_secret
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol.handshake import Admission, Doorkeeper

SECRET_FILE: Final = "mesh.secret"  # noqa: S105 (a file name)


class Membership(Protocol):
    """What makes this node a member, and tells members from others."""

    @property
    def doorkeeper(self) -> Doorkeeper:
        """What links ask."""

    def commands(self, addresses: Callable[[], Sequence[str]]) -> Mapping[str, Command]:
        """What the owner may ask over the control socket; `addresses`: of this node."""

    async def obtain(self, host: MeshHost) -> None:
        """Become a member. Raises JoinFailed."""

    def start(self, nursery: trio.Nursery, host: MeshHost, network: MeshNetwork) -> None:
        """Keep being one. To be called once, before links are made."""

    def join_string(self, addresses: Sequence[str]) -> str | None:
        """What another node's ``--join`` takes; None if this node listens nowhere."""


class SecretMembership:
    """Who knows the secret is a member; in an open mesh everybody is."""

    def __init__(self, doorkeeper: Admission) -> None:
        self.doorkeeper = doorkeeper

    def commands(self, addresses: Callable[[], Sequence[str]]) -> Mapping[str, Command]:
        """None: who has the secret gives it away as it likes."""
        del addresses
        return {}

    async def obtain(self, host: MeshHost) -> None:
        """Knowing the secret is all."""

    def start(self, nursery: trio.Nursery, host: MeshHost, network: MeshNetwork) -> None:
        """Nothing to do."""

    def join_string(self, addresses: Sequence[str]) -> str | None:
        """It carries the secret."""
        if not addresses:
            return None
        return format_join(JoinTarget(tuple(addresses), self.doorkeeper.secret))


def membership(
    settings: Settings, targets: Sequence[JoinTarget], identity: KeyPair, roles: Role
) -> Membership:
    """The membership these settings ask for.

    Raises:
        ConfigError: they contradict each other, or something is missing.
    """
    if has_authority(settings, targets):
        return AuthorityMembership(settings, targets, identity, roles)
    if not settings.mesh.open and settings.mesh.secret_file is None:
        refuse_forgotten_mesh(settings, targets)
    secret = mesh_secret(settings, targets)
    agent = f"aimo/{__version__}"
    return SecretMembership(Admission(identity.peer_id, secret, roles, agent=agent))


def has_authority(settings: Settings, targets: Sequence[JoinTarget]) -> bool:
    """Whether these settings are of a mesh with an authority: by what they say, or by the
    certificate in the state folder if they name relays and nothing else.

    Raises:
        ConfigError: the certificate cannot be read.
    """
    mesh = settings.mesh
    if mesh.authority or any(target.mesh is not None for target in targets):
        return True
    if mesh.open or mesh.secret_file is not None:
        return False
    is_plain = bool(targets) and all(target.secret is None for target in targets)
    return is_plain and mesh_of_state(settings.node.state) is not None


def refuse_forgotten_mesh(settings: Settings, targets: Sequence[JoinTarget]) -> None:
    """A node that is told of no mesh, and whose state folder belongs to one, makes no other.

    Raises:
        ConfigError: it is such a node; the message names the flag.
    """
    state = settings.node.state
    key = state / CERTIFIED_FILES["key"]
    if not targets and key.exists():
        raise ConfigError(
            f"{key} is the key of a mesh's authority: start this node with --authority, or give it"
            " another folder with --state"
        )
    has_secret = (state / SECRET_FILE).exists()
    if not targets and not has_secret and mesh_of_state(state) is not None:
        raise ConfigError(
            f"{state / CERTIFICATE_FILE} makes this node a member of a mesh with an authority: name"
            " a relay of it with --join, or remove that file to begin another mesh"
        )


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
