"""Membership in a mesh with an authority: put together from settings, join strings and state."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from aimo_node import __version__
from aimo_node.assembly.control_socket import Command
from aimo_node.assembly.member_commands import member_commands
from aimo_node.config.settings import Settings
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.join import ADDRESSES_MAX, JoinTarget, format_join, peer_of_address
from aimo_node.errors import ConfigError, RemoteProtocolError
from aimo_node.mesh.host import MeshHost
from aimo_node.mesh.identity import KeyPair, load_identity, verifier
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.credential import CERTIFICATE_FILE, Credential, read_kept
from aimo_node.mesh.membership.enrolment import Enrolment, Home
from aimo_node.mesh.membership.members import MEMBERS_PROTOCOL, Members
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol.certificates import CertificateBody, Signed, open_invite
from aimo_node.store.members import SqliteMemberStore

CERTIFIED_FILES: Final = {"key": "authority.pem", "members": "members.sqlite"}
"""What the authority keeps in its state folder."""


class AuthorityMembership:
    """See `assembly.membership.Membership`."""

    def __init__(
        self, settings: Settings, targets: Sequence[JoinTarget], identity: KeyPair, roles: Role
    ) -> None:
        """
        Raises:
            ConfigError: the settings contradict each other, or there is nothing to join with.
        """
        state = settings.node.state
        if settings.mesh.open or settings.mesh.secret_file is not None:
            raise ConfigError(
                "a mesh with an authority has no secret, nor is it open: drop --open and"
                " --mesh-secret-file"
            )
        if any(target.secret is not None for target in targets):
            raise ConfigError("the join strings are of different meshes: give those of one mesh")
        self._authority = _authority(settings, roles)
        self._mesh = _mesh(targets, self._authority, state)
        self._credential = Credential(self._mesh, identity.peer_id, roles, state, clock_ms=clock_ms)
        self._credential.agent = f"aimo/{__version__}"
        invite = b"" if self._authority else _invite(targets, self._credential, roles)
        self._others = _addresses(targets, identity.peer_id)
        home = Home(
            self._others,
            invite,
            _inviters(targets, invite),
            self._authority,
            roles,
        )
        self._members = Members(self._credential, self._authority, is_relay=Role.RELAY in roles)
        chance = random.Random(secrets.randbits(64))  # noqa: S311 (only spreads questions)
        self._enrolment = Enrolment(home, self._credential, self._members, chance)
        self._network: MeshNetwork | None = None

    @property
    def doorkeeper(self) -> Credential:
        """See `Membership`."""
        return self._credential

    def commands(self, addresses: Callable[[], Sequence[str]]) -> Mapping[str, Command]:
        """Inviting and banning, at the authority.

        An invite names this node first, and then the relays it joins: they pass on what newcomers
        ask who cannot reach this node.
        """
        if self._authority is None:
            return {}

        def invitation(invite: bytes) -> str | None:
            through = [address for found in self._others.values() for address in found]
            return self._joining([*addresses(), *through][:ADDRESSES_MAX], invite)

        return member_commands(self._authority, self._members, invitation, self._links)

    async def obtain(self, host: MeshHost) -> None:
        """See `Membership`."""
        await self._enrolment.obtain(host)

    def start(self, nursery: trio.Nursery, host: MeshHost, network: MeshNetwork) -> None:
        """See `Membership`."""
        self._network = network
        host.serve(MEMBERS_PROTOCOL, self._members.serve)
        network.add_observer(self._members)
        nursery.start_soon(self._members.run, host, network)
        nursery.start_soon(self._enrolment.run, host)

    def join_string(self, addresses: Sequence[str]) -> str | None:
        """For members: it carries no invite."""
        return self._joining(addresses, b"")

    def _joining(self, addresses: Sequence[str], invite: bytes) -> str | None:
        target = JoinTarget(tuple(addresses), None, self._mesh, invite) if addresses else None
        return format_join(target) if target is not None else None

    def _links(self) -> frozenset[PeerId]:
        links = self._network.links() if self._network is not None else ()
        return frozenset(link.peer for link in links)


def clock_ms() -> int:
    """Wall time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def mesh_of_state(state: Path) -> bytes | None:
    """The mesh of the certificate that is kept there; None without one. Checked by who uses it."""
    kept = read_kept(state / CERTIFICATE_FILE)
    try:
        signed = msgspec.msgpack.decode(kept, type=Signed)
        return msgspec.msgpack.decode(signed.body, type=CertificateBody).mesh
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _authority(settings: Settings, roles: Role) -> Authority | None:
    if not settings.mesh.authority:
        return None
    if Role.RELAY not in roles:
        raise ConfigError("mesh.authority: the authority of a mesh is a relay: start it as one")
    state = settings.node.state
    try:
        key = load_identity(state / CERTIFIED_FILES["key"])
    except ConfigError as error:
        raise ConfigError(f"the authority's key cannot be used: {error}") from error
    return Authority(key, SqliteMemberStore(state / CERTIFIED_FILES["members"]), clock_ms)


def _mesh(targets: Sequence[JoinTarget], authority: Authority | None, state: Path) -> bytes:
    found = {target.mesh for target in targets if target.mesh is not None}
    if authority is not None:
        found.add(authority.mesh)
    if len(found) > 1:
        raise ConfigError("the join strings are of different meshes: give those of one mesh")
    kept = mesh_of_state(state)
    mesh = found.pop() if found else kept
    if mesh is None:
        raise ConfigError("a mesh with an authority is joined with an invite: ask its owner")
    return mesh


def _addresses(targets: Sequence[JoinTarget], own: PeerId) -> dict[PeerId, list[str]]:
    """Whom to ask for a certificate: those of join strings first, since they name the authority."""
    addresses: dict[PeerId, list[str]] = {}
    for target in sorted(targets, key=lambda one: not one.invite):
        for address in target.addresses:
            peer = peer_of_address(address)
            if peer != own:
                addresses.setdefault(peer, []).append(address)
    return addresses


def _inviters(targets: Sequence[JoinTarget], invite: bytes) -> frozenset[PeerId]:
    named = (one.addresses for one in targets if invite and one.invite == invite)
    return frozenset(peer_of_address(address) for addresses in named for address in addresses)


def _invite(targets: Sequence[JoinTarget], credential: Credential, roles: Role) -> bytes:
    """The invite to redeem if need be; refused here if it cannot be of use, before it is used."""
    held = credential.certificate
    is_member = held is not None and not roles & ~held.roles
    invites = [target.invite for target in targets if target.invite]
    if is_member or not invites:
        if not is_member:
            names = " and ".join(roles.names)
            raise ConfigError(
                f"this node is no member of the mesh as {names}: join with an invite, which the"
                f" mesh's owner makes with: aimo invite"
                + "".join(f" --role {name}" for name in roles.names)
            )
        return invites[0] if invites else b""
    try:
        invite = open_invite(invites[0], verifier(credential.mesh))
    except RemoteProtocolError as error:
        raise ConfigError(f"the invite does not do: {error}") from error
    have = invite.roles | (held.roles if held is not None else Role.NONE)
    missing = roles & ~have
    if missing:
        raise ConfigError(
            f"the invite is for {' and '.join(invite.roles.names)}, and this node is"
            f" {' and '.join(roles.names)}: ask for one made with"
            + "".join(f" --role {name}" for name in roles.names)
        )
    return invites[0]
