"""Where the authority of a mesh keeps its members and invites. Calls block and are whole or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import Grant, Invite, Member, Refusal


class MemberStore(Protocol):
    """The authority's book. Times are milliseconds since the epoch.

    Every method raises ConfigError when the book cannot be read or written.
    """

    def add_invite(self, invite: Invite, now_ms: int) -> None:
        """Remember an invite. Raises ConfigError when there are too many that still run."""

    def redeem(self, invite_id: bytes, peer: PeerId, now_ms: int) -> Grant | Refusal:
        """Count one use of an invite and make the peer a member; again for the same peer: renew."""

    def renew(self, peer: PeerId, now_ms: int) -> Grant | Refusal:
        """A new certificate for a member."""

    def enrol(self, peer: PeerId, roles: Role, now_ms: int) -> Grant:
        """A certificate without an invite: for the authority's own node."""

    def set_ban(self, peer: PeerId, now_ms: int, *, banned: bool) -> bool:
        """Ban a peer or lift its ban; whether that changed anything."""

    def catch_up(self, version: int, banned: frozenset[PeerId], now_ms: int) -> bool:
        """Be no older than a list of bans that is known elsewhere; whether the book was."""

    def bans(self, now_ms: int) -> tuple[int, frozenset[PeerId]]:
        """Version of the list, and who is banned while a certificate of theirs may still run."""

    def members(self) -> Sequence[Member]:
        """Everybody who ever joined or was banned, the oldest first."""
