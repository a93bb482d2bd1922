"""Becoming a member and staying one: redeems an invite, renews the certificate by itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import Refusal, clock_problem
from aimo_node.errors import AimoError, JoinFailed, NetworkError, RemoteProtocolError
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.membership.members import Asker, Members, ask
from aimo_node.protocol.members import Answer, Granted, Redeem, Refused, Renew

log = structlog.get_logger()

FIRST_JOIN_SECONDS: Final = 30.0
"""As for the first link: an authority that starts at the same time is up by then."""
BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 5.0
EAGER_SECONDS: Final = 2.0
"""Within this time of its start a node that was given an invite shows that it is a member: else one
whose authority has lost its book would only notice when the invite is no good any more."""
RENEW_SECONDS: Final = 60.0
"""How often a certificate is looked at, and a renewal that failed is tried again: by then half a
week is left."""

PROBLEMS_TOLD_MAX: Final = 3
"""Of those that were asked; the authority's own node comes first in an invite."""

_AWAY: Final = (
    "the authority of the mesh must answer for a node to join: members go on without it, and"
    " joining works when it is back"
)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a certificate comes from.

    Attributes:
        addresses: whom to ask, by peer id; one of them is the authority's node.
        invite: what to redeem if this node is no member yet; empty without one.
        inviters: who may see the invite: those that it names, since whoever sees it can use it.
        authority: if it runs in this node.
        roles: of this node.
    """

    addresses: Mapping[PeerId, Sequence[str]]
    invite: bytes
    inviters: frozenset[PeerId]
    authority: Authority | None
    roles: Role


class Enrolment:
    """Keeps this node's certificate good."""

    def __init__(
        self, home: Home, credential: Credential, members: Members, chance: random.Random
    ) -> None:
        """`chance` spreads the questions of many nodes."""
        self._home = home
        self._credential = credential
        self._members = members
        self._chance = chance
        self._was_answered = False

    async def obtain(self, host: Asker) -> None:
        """Return once there is a certificate that does.

        Raises:
            JoinFailed: refused, or nobody answered for `FIRST_JOIN_SECONDS`.
        """
        if self._credential.problem() is None and self._home.authority is None:
            return
        problem, wait, is_missing = "no answer", BACKOFF_SECONDS, True
        with trio.move_on_after(FIRST_JOIN_SECONDS) as scope:
            while is_missing:
                try:
                    await self._ask_all(host)
                    is_missing = False
                except NetworkError as error:
                    problem = error.message
                    await trio.sleep(wait * (0.5 + self._chance.random() / 2))
                    wait = min(2 * wait, BACKOFF_SECONDS_MAX)
        if not scope.cancelled_caught:
            return
        if self._credential.certificate is not None:
            problem = f"{self._credential.problem()}, and {problem}"
        raise JoinFailed(f"cannot join the mesh: {problem}; {_AWAY}")

    async def run(self, host: Asker) -> None:
        """Renew when half of the certificate's life is over, until cancelled."""
        # without a certificate `obtain` is asking already
        has_certificate = self._credential.problem() is None
        is_eager = bool(self._home.invite) and has_certificate and not self._was_answered
        if is_eager:
            await trio.sleep(EAGER_SECONDS * self._chance.random())
        while True:
            if not is_eager:
                await trio.sleep(RENEW_SECONDS * (0.5 + self._chance.random() / 2))
                certificate = self._credential.certificate
                if certificate is not None and self._credential.now_ms < certificate.renew_at_ms:
                    continue
            is_eager = False
            try:
                await self._ask_all(host)
            except AimoError as error:
                log.warning("certificate.not_renewed", reason=str(error))

    async def _ask_all(self, host: Asker) -> None:
        """One round.

        Raises:
            JoinFailed: the authority says no.
            NetworkError: it could not be asked; the message says why.
        """
        if self._home.authority is not None:
            granted = await self._home.authority.enrol(self._credential.peer, self._home.roles)
            self._take(granted, self._credential.peer)
            return
        problems: list[str] = []
        refused: JoinFailed | None = None
        linked = [peer for peer in self._members.relays() if peer not in self._home.addresses]
        for peer, addresses in [*self._home.addresses.items(), *((one, ()) for one in linked)]:
            try:
                answer = await self._ask_one(host, peer, addresses)
                if isinstance(answer, Granted):
                    self._take(answer, peer)
                    return
                problem = self._weigh(answer, peer)
            except NetworkError as error:
                problem = error.message
            except JoinFailed as error:  # signed by nobody: the authority may say something else
                refused, problem = refused or error, str(error)
            problems.append(problem if peer in problem else f"{peer}: {problem}")
        if refused is not None:
            raise refused
        said = problems[:PROBLEMS_TOLD_MAX] or ["there is nobody to ask for a certificate"]
        raise NetworkError("; ".join(said))

    async def _ask_one(self, host: Asker, peer: PeerId, addresses: Sequence[str]) -> Answer:
        """Renew if this node is a member for all it does, else redeem the invite."""
        certificate = self._credential.certificate
        invite = self._home.invite if peer in self._home.inviters else b""
        if certificate is None or self._home.roles & ~certificate.roles:
            if not invite:
                raise NetworkError(f"the invite does not name {peer}")
            answer = await ask(host, peer, addresses, Redeem(invite, self._credential.now_ms))
            if certificate is None and _is_spent(answer):
                # whoever it admitted long ago is a member, and may have lost its certificate
                renewed = await ask(host, peer, addresses, Renew(self._credential.now_ms))
                answer = renewed if isinstance(renewed, Granted) else answer
        else:
            answer = await ask(host, peer, addresses, Renew(self._credential.now_ms))
            if invite and isinstance(answer, Refused) and answer.reason == Refusal.NOT_A_MEMBER:
                redeem = Redeem(invite, self._credential.now_ms)
                answer = await ask(host, peer, addresses, redeem)
        return answer

    def _weigh(self, answer: Answer, peer: PeerId) -> str:
        """Why that is no certificate. Raises JoinFailed if nobody else need be asked."""
        if not isinstance(answer, Refused):
            return "it answers something else than was asked"
        try:
            reason = Refusal(answer.reason)
        except ValueError:  # of a newer version
            reason = Refusal.MALFORMED
        message = answer.message
        if reason is Refusal.CLOCK:
            problem = clock_problem(answer.now_ms, self._credential.now_ms)
            message = f"{problem or 'this clock is wrong'}: set it, best by NTP"
        is_stranger = reason is Refusal.NOT_A_MEMBER
        may_redeem = bool(self._home.invite) and peer not in self._home.inviters
        if reason.is_final and not (is_stranger and may_redeem):
            raise JoinFailed(f"cannot join the mesh: {message}")
        return message

    def _take(self, granted: Granted, peer: PeerId) -> None:
        problem = self._credential.install(granted.certificate)
        if problem is not None:
            raise NetworkError(f"{peer} gave a certificate that does not do: {problem}")
        try:
            self._members.learn_bans(granted.bans)
        except RemoteProtocolError as error:
            raise NetworkError(f"{peer} gave a list of bans that does not do: {error}") from error
        self._was_answered = True
        self._members.show(granted.certificate)
        certificate = self._credential.certificate
        log.info("certificate.taken", authority=peer, serial=certificate and certificate.serial)


def _is_spent(answer: Answer) -> bool:
    """Whether an invite was refused that may have been good once."""
    return isinstance(answer, Refused) and answer.reason in {
        Refusal.UNKNOWN_INVITE,
        Refusal.INVITE_EXPIRED,
        Refusal.INVITE_USED,
    }
