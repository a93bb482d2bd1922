"""The authority of a mesh: signs certificates, invites and bans by what its book says."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import (
    INVITE_ID_BYTES,
    INVITE_MS_MAX,
    INVITE_USES_MAX,
    SKEW_MS,
    BanList,
    Certificate,
    Grant,
    Invite,
    Member,
    Refusal,
)
from aimo_node.errors import ConfigError, RemoteProtocolError
from aimo_node.mesh.identity import KeyPair, sign, verifier
from aimo_node.ports.member_store import MemberStore
from aimo_node.protocol.certificates import (
    Sign,
    open_invite,
    seal_bans,
    seal_certificate,
    seal_invite,
)
from aimo_node.protocol.members import Answer, Granted, Redeem, Refused, Renew

log = structlog.get_logger()

THREADS_MAX: Final = 4
"""Transactions under way; SQLite lets one write at a time."""

_SENTENCES: Final = {
    Refusal.UNKNOWN_INVITE: "the authority does not know this invite: ask for a new one",
    Refusal.INVITE_EXPIRED: "the invite has expired: ask for a new one",
    Refusal.INVITE_USED: "the invite was used up: ask for a new one",
    Refusal.BANNED: "the authority has banned this node",
    Refusal.NOT_A_MEMBER: "this node is no member of the mesh: ask for an invite",
    Refusal.FULL: "the mesh has as many members as its authority keeps",
}

_Result = TypeVar("_Result")


class Authority:
    """Decides who is a member. Its key is apart from the node's own, so that it can be moved."""

    def __init__(self, key: KeyPair, store: MemberStore, clock_ms: Callable[[], int]) -> None:
        """`clock_ms`: wall time, milliseconds since the epoch."""
        self.mesh = key.public_key
        self._store = store
        self._clock_ms = clock_ms
        self._sign: Sign = partial(sign, key)
        self._verify = verifier(key.public_key)
        self._threads = trio.CapacityLimiter(THREADS_MAX)

    async def invite(self, roles: Role, lifetime_ms: int, uses: int) -> bytes:
        """A new invite, signed.

        Raises:
            ConfigError: no role, or lifetime or uses out of range.
        """
        if not roles:
            raise ConfigError("an invite needs a role")
        if not 0 < lifetime_ms <= INVITE_MS_MAX:
            raise ConfigError("an invite lasts at most 365 days")
        if not 1 <= uses <= INVITE_USES_MAX:
            raise ConfigError(f"an invite is for 1 to {INVITE_USES_MAX} nodes")
        now_ms = self._clock_ms()
        invite_id = secrets.token_bytes(INVITE_ID_BYTES)
        invite = Invite(self.mesh, invite_id, roles, now_ms + lifetime_ms, uses)
        await self._ask_store(self._store.add_invite, invite, now_ms)
        return seal_invite(invite, self._sign)

    async def answer(self, peer: PeerId, question: Redeem | Renew) -> Answer:
        """What a peer that asks for a certificate is told."""
        now_ms = self._clock_ms()
        if abs(question.now_ms - now_ms) > SKEW_MS:
            return self._refuse(peer, Refusal.CLOCK, "its clock is wrong")
        if isinstance(question, Renew):
            grant = await self._ask_store(self._store.renew, peer, now_ms)
        else:
            try:
                invite = open_invite(question.invite, self._verify)
            except RemoteProtocolError as error:
                return self._refuse(peer, Refusal.UNKNOWN_INVITE, str(error))
            grant = await self._ask_store(self._store.redeem, invite.id, peer, now_ms)
        if isinstance(grant, Refusal):
            return self._refuse(peer, grant, _SENTENCES[grant])
        log.info("member.certified", peer=peer, roles=grant.roles.names, serial=grant.serial)
        return await self._grant(peer, grant)

    async def enrol(self, peer: PeerId, roles: Role) -> Granted:
        """A certificate for the node the authority itself runs in."""
        grant = await self._ask_store(self._store.enrol, peer, roles, self._clock_ms())
        return await self._grant(peer, grant)

    async def set_ban(self, peer: PeerId, *, banned: bool) -> bool:
        """Ban a peer or lift its ban; whether that changed anything."""

        def change() -> bool:
            return self._store.set_ban(peer, self._clock_ms(), banned=banned)

        return await self._ask_store(change)

    async def catch_up(self, bans: BanList) -> bool:
        """Take into the book what a list says that this authority signed after the book was copied;
        whether there was anything."""
        now_ms = self._clock_ms()
        return await self._ask_store(self._store.catch_up, bans.version, bans.peers, now_ms)

    async def bans(self) -> bytes:
        """The list of bans as it is now, signed."""
        version, peers = await self._ask_store(self._store.bans, self._clock_ms())
        return seal_bans(BanList(self.mesh, version, peers), self._sign)

    async def members(self) -> Sequence[Member]:
        """Everybody who ever joined or was banned."""
        return await self._ask_store(self._store.members)

    async def _grant(self, peer: PeerId, grant: Grant) -> Granted:
        certificate = Certificate(
            self.mesh, peer, grant.roles, grant.serial, grant.issued_ms, grant.expires_ms
        )
        sealed = seal_certificate(certificate, self._sign)
        return Granted(sealed, await self.bans(), self._clock_ms())

    def _refuse(self, peer: PeerId, reason: Refusal, message: str) -> Refused:
        log.info("member.refused", peer=peer, reason=reason.name.lower())
        return Refused(int(reason), message, self._clock_ms())

    async def _ask_store(self, call: Callable[..., _Result], *arguments: object) -> _Result:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._threads)
