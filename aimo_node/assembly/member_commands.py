"""What ``aimo invite`` and ``aimo peers ban|allow|list`` ask of the authority's node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aimo_node.assembly.control_socket import Command
from aimo_node.domain.ids import PeerId, Role, is_peer_id
from aimo_node.domain.membership import Member
from aimo_node.errors import ConfigError
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.members import Members

LISTED_MAX: Final = 2_000
"""Members in one answer, whose line is at most 1 MiB; who wants all asks again."""
_ROLES = {role.names[0]: role for role in (Role.RELAY, Role.PROVIDER, Role.EDGE)}


def member_commands(
    authority: Authority,
    members: Members,
    invitation: Callable[[bytes], str | None],
    links: Callable[[], frozenset[PeerId]],
) -> Mapping[str, Command]:
    """The commands by name.

    Args:
        invitation: the join string that carries a signed invite; None if nobody could use it.
        links: who is linked to this node now.
    """

    async def invite(request: Mapping[str, Any]) -> Mapping[str, Any]:
        roles = _roles(request.get("roles"))
        seconds, uses = request.get("expires_seconds"), request.get("uses")
        if not isinstance(seconds, int | float) or not isinstance(uses, int):
            raise ConfigError("an invite needs an end and a number of uses")
        sealed = await authority.invite(roles, int(seconds * 1000), uses)
        text = invitation(sealed)
        if text is None:
            raise ConfigError("this node listens nowhere, so nobody could redeem an invite")
        return {"invite": text, "roles": roles.names, "expires_seconds": seconds, "uses": uses}

    async def set_ban(request: Mapping[str, Any], *, banned: bool) -> Mapping[str, Any]:
        peer = request.get("peer")
        if not isinstance(peer, str) or not is_peer_id(peer):
            raise ConfigError(f"{peer!r} is not a peer id; aimo peers list shows those of members")
        if banned and peer == members.own:
            raise ConfigError("that is the authority's own node")
        changed = await authority.set_ban(PeerId(peer), banned=banned)
        await members.tell_bans()
        joined = any(one.peer == peer and one.issued_ms for one in await authority.members())
        return {"peer": peer, "banned": banned, "changed": changed, "joined": joined}

    async def ban(request: Mapping[str, Any]) -> Mapping[str, Any]:
        return await set_ban(request, banned=True)

    async def allow(request: Mapping[str, Any]) -> Mapping[str, Any]:
        return await set_ban(request, banned=False)

    async def listed(request: Mapping[str, Any]) -> Mapping[str, Any]:
        first = _place(request.get("after", 0))
        known, linked = await authority.members(), links()
        shown = [_shown(one, linked, members.own) for one in known[first:][:LISTED_MAX]]
        return {"members": shown, "more": max(0, len(known) - first - LISTED_MAX)}

    return {
        "members.invite": invite,
        "members.ban": ban,
        "members.allow": allow,
        "members.list": listed,
    }


def _place(first: object) -> int:
    if type(first) is not int or first < 0:
        raise ConfigError("that is no place in the list of members")
    return first


def _roles(names: object) -> Role:
    roles = Role.NONE
    for name in names if isinstance(names, Sequence) else ():
        if name not in _ROLES:
            raise ConfigError(f"there is no role {name!r}; there are: {', '.join(_ROLES)}")
        roles |= _ROLES[name]
    return roles


def _shown(member: Member, linked: frozenset[PeerId], own: PeerId) -> dict[str, Any]:
    return {
        "id": member.peer,
        "own": member.peer == own,
        "roles": member.roles.names,
        "linked": member.peer in linked,
        "banned": member.banned_ms is not None,
        "joined_ms": member.joined_ms,
        "renewed_ms": member.issued_ms,
        "expires_ms": member.expires_ms if member.issued_ms else 0,
        "banned_ms": member.banned_ms,
    }
