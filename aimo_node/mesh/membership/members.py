"""`/aimo/members/1` on a node: answers who asks, hands on bans, ends links that became wrong.

A relay that is not the authority passes on what it is asked to the relay that is, if it has a link
to it: so members, and newcomers whose invite names that relay, need no way to the authority.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import structlog
import trio

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import Refusal
from aimo_node.errors import AimoError, CloseCode, ConfigError, NetworkError, RemoteProtocolError
from aimo_node.mesh.allowance import Allowance
from aimo_node.mesh.link import ByteStream, Link
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.network import MeshNetwork
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol import members
from aimo_node.protocol.members import (
    Answer,
    Bans,
    PassOn,
    Question,
    Redeem,
    Refused,
    Renew,
    Show,
    Taken,
)

log = structlog.get_logger()

MEMBERS_PROTOCOL: Final = "/aimo/members/1"
EXCHANGE_SECONDS: Final = 10.0
"""For one question and its answer, the dial included."""
EXCHANGES_MAX: Final = 256
"""Answered at a time; more are told to come again."""
EXCHANGES_PER_ADDRESS_MAX: Final = 16
"""Of those, from one IP address: who asks slowly must not keep the others from asking."""
QUESTIONS_MAX: Final = 64
QUESTIONS_PER_SECOND: Final = 4.0
"""From one IP address: a rack behind one router that joins at once, and then who guesses."""
RELAY_SHARE: Final = 8
"""So many times that for a relay of the mesh: it passes on what many ask, and has held each of them
to its own part already."""
ADDRESSES_MAX: Final = 4_096
NETWORK_BITS: Final = 64
"""Of an IPv6 address what one owner has at least."""
CHECK_SECONDS: Final = 5.0
"""How long after its certificate's end, at most, a peer may begin something new."""
EXPIRED_SECONDS: Final = 600.0
"""What still runs on a link then may take as long as a request takes."""
TELL_AGAIN_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0)
"""After these a member is told of a ban again that did not hear it: as long as one may be busy with
questions of strangers, and a newer ban does not wait for longer than the longest."""
PASS_ON_SECONDS: Final = 6.0
"""For finding the authority among the relays linked: less than who asked waits, dial included."""
PASS_ON_MAX: Final = 8
"""Relays that are asked whether they are the authority; the one that was is asked first."""
TELLING_MAX: Final = 64
"""Peers that are told something at a time: a relay has a thousand."""
_CHUNK_BYTES: Final = 32_000


class Asker(Protocol):
    """What asking needs of the libp2p host."""

    async def dial(
        self, peer: PeerId, addresses: Sequence[str], *, protocol: str | None = None
    ) -> ByteStream:
        """Open a stream. Raises NetworkError."""


async def ask(host: Asker, peer: PeerId, addresses: Sequence[str], question: Question) -> Answer:
    """Ask one peer.

    Raises:
        NetworkError: it cannot be reached, does not answer in time, or answers nonsense.
    """
    try:
        with trio.fail_after(EXCHANGE_SECONDS):
            stream = await host.dial(peer, addresses, protocol=MEMBERS_PROTOCOL)
            try:
                await _send(stream, members.encode(question))
                return members.decode_answer(await _receive(stream))
            finally:
                await stream.close()
    except trio.TooSlowError as error:
        raise NetworkError(f"{peer} did not answer within {EXCHANGE_SECONDS:g} s") from error
    except RemoteProtocolError as error:
        raise NetworkError(f"{peer} answers nonsense: {error}") from error


class Members(IdleObserver):
    """The part of a node that keeps its links those of members. `run` is its life."""

    def __init__(
        self, credential: Credential, authority: Authority | None, *, is_relay: bool
    ) -> None:
        """`authority`: if this node runs it."""
        self._credential = credential
        self._authority = authority
        self._is_relay = is_relay
        self._network: MeshNetwork | None = None
        self._host: Asker | None = None
        self._nursery: trio.Nursery | None = None
        self._exchanges: Counter[str] = Counter()
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        self._expired: dict[Link, float] = {}
        self._news: dict[tuple[PeerId, type[Bans | Show]], Bans | Show] = {}
        """What peers are being told, the latest of each kind."""
        self._telling = trio.CapacityLimiter(TELLING_MAX)
        self._authority_seen: PeerId | None = None
        """The relay that answered as the authority last."""

    @property
    def own(self) -> PeerId:
        """This node."""
        return self._credential.peer

    async def run(self, host: Asker, network: MeshNetwork) -> None:
        """Look at the links now and then, until cancelled."""
        self._host, self._network = host, network
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._authority is not None:
                nursery.start_soon(self._catch_up, self._authority)
            while True:
                await trio.sleep(CHECK_SECONDS)
                self._check_links()

    async def serve(self, stream: ByteStream) -> None:
        """Answer one question; whoever asks too much or too slowly is hung up on."""
        address, share = asker_of(stream.remote_address), 1
        if self._is_relay_of_ours(stream.peer):
            address, share = stream.peer, RELAY_SHARE
        if not self._may_ask(address, share):
            await _send(stream, members.encode(self._refused(Refusal.BUSY, "busy: come again")))
            return
        self._exchanges[address] += 1
        try:
            with trio.fail_after(EXCHANGE_SECONDS):
                question = members.decode_question(await _receive(stream))
                await _send(stream, members.encode(await self._answer(stream.peer, question)))
        except (RemoteProtocolError, trio.TooSlowError) as error:
            log.info("members.cut_off", peer=stream.peer, reason=str(error) or "too slow")
            await stream.reset()
        finally:
            self._exchanges[address] -= 1
            self._exchanges += Counter()  # forgets who has nothing under way

    def relays(self) -> list[PeerId]:
        """The relays linked now; the one that was the authority last comes first."""
        links = self._network.links() if self._network is not None else ()
        found = [link.peer for link in links if Role.RELAY in link.roles & link.rights]
        found = [peer for peer in found if peer != self.own]
        return sorted(found, key=lambda peer: peer != self._authority_seen)

    def show(self, certificate: bytes) -> None:
        """Tell everybody linked that this node's certificate is a new one: no link ends for it."""
        for link in self._network.links() if self._network is not None else ():
            self._tell(link.peer, Show(certificate))

    async def tell_bans(self) -> None:
        """At the authority: sign the list anew and put it into force, here and everywhere."""
        if self._authority is not None:
            self.learn_bans(await self._authority.bans())

    def learn_bans(self, sealed: bytes) -> None:
        """Put a list of bans into force if it is news: end links, tell others.

        Raises:
            RemoteProtocolError: the authority did not sign it.
        """
        try:
            if not self._credential.learn_bans(sealed):
                return
        except ConfigError as error:  # in force all the same, until a restart
            log.warning("bans.not_kept", reason=str(error))
        bans = self._credential.bans
        if self._authority is not None and self._nursery is not None:
            self._nursery.start_soon(self._catch_up, self._authority)
        log.info("bans.changed", version=bans.version, banned=len(bans.peers))
        if self._network is None:
            return
        for link in self._network.living():
            if link.peer in bans.peers:
                link.close(CloseCode.NotAdmitted, "the peer is banned")
        if self._is_relay:  # everybody is linked to one
            for link in self._network.links():
                self._tell(link.peer, Bans(self._credential.sealed_bans))

    def link_opened(self, link: Link) -> None:
        """A newcomer may have missed the latest bans; a relay may, too, if it was cut off, or is an
        authority whose book is a copy from before."""
        if self._credential.bans.version > 0 and (self._is_relay or Role.RELAY in link.roles):
            self._tell(link.peer, Bans(self._credential.sealed_bans))

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """Nothing to watch any more."""
        self._expired.pop(link, None)

    def _tell(self, peer: PeerId, news: Bans | Show) -> None:
        if self._nursery is None or peer == self._credential.peer:
            return
        key = (peer, type(news))
        is_being_told = key in self._news
        self._news[key] = news
        if not is_being_told:
            self._nursery.start_soon(self._push, peer, key)

    async def _push(self, peer: PeerId, key: tuple[PeerId, type[Bans | Show]]) -> None:
        """Tell one peer the latest, more than once if need be: strangers may keep it busy."""
        pauses = iter(TELL_AGAIN_SECONDS)
        try:
            while self._network is not None and self._network.link(peer) is not None:
                news = self._news[key]
                problem = await self._tell_once(peer, news)
                if problem:
                    pause = next(pauses, None)
                    log.info(
                        "news.not_told",
                        peer=peer,
                        news=type(news).__name__,
                        reason=problem,
                        again_in_seconds=pause,
                    )
                    if pause is None:
                        return
                    await trio.sleep(pause)
                elif news is self._news[key]:
                    return
        finally:
            del self._news[key]

    async def _tell_once(self, peer: PeerId, news: Bans | Show) -> str:
        """Why the peer did not hear it; empty if it did."""
        if self._host is None:
            return "the node is not running"
        try:
            async with self._telling:
                answer = await ask(self._host, peer, (), news)
        except NetworkError as error:
            return error.message
        return answer.message if isinstance(answer, Refused) else ""

    async def _catch_up(self, authority: Authority) -> None:
        """Somebody knew bans that the authority's own book does not: it is a copy from before."""
        try:
            if await authority.catch_up(self._credential.bans):
                log.warning("bans.book_was_old", version=self._credential.bans.version)
                await self.tell_bans()
        except ConfigError as error:
            log.warning("members.unavailable", reason=str(error))

    async def _answer(self, peer: PeerId, question: Question) -> Answer:
        if isinstance(question, Bans):
            self.learn_bans(question.bans)
            return Taken()
        if isinstance(question, Show):
            return self._see(peer, question.certificate)
        if self._authority is None:
            return await self._pass_on(peer, question)
        if isinstance(question, PassOn):
            if peer not in self.relays():
                message = "only relays of the mesh pass questions on"
                return self._refused(Refusal.NOT_A_MEMBER, message)
            peer, question = PeerId(question.peer_id), question.question
        try:
            return await self._authority.answer(peer, question)
        except ConfigError as error:
            log.warning("members.unavailable", reason=str(error))
            return self._refused(Refusal.BUSY, "the authority cannot use its book now")

    async def _pass_on(self, peer: PeerId, question: Redeem | Renew | PassOn) -> Answer:
        """What the authority says, if one of the relays linked is it: one on the way at most."""
        if not self._is_relay or self._host is None or isinstance(question, PassOn):
            message = "this node is not the authority of the mesh"
            return self._refused(Refusal.NOT_AUTHORITY, message)
        with trio.move_on_after(PASS_ON_SECONDS):
            for relay in [one for one in self.relays() if one != peer][:PASS_ON_MAX]:
                try:
                    answer = await ask(self._host, relay, (), PassOn(peer, question))
                except NetworkError as error:
                    log.info("question.not_passed_on", relay=relay, reason=error.message)
                    continue
                if isinstance(answer, Refused) and answer.reason == Refusal.NOT_AUTHORITY:
                    continue
                self._authority_seen = relay
                return answer
        message = "this relay is not the authority of the mesh, and has no link to it now"
        return self._refused(Refusal.NOT_AUTHORITY, message)

    def _see(self, peer: PeerId, certificate: bytes) -> Answer:
        link = self._network.link(peer) if self._network is not None else None
        if link is None or link.session.hello is None:
            return self._refused(Refusal.NOT_A_MEMBER, "there is no link between us")
        try:
            link.session.readmit(msgspec.structs.replace(link.session.hello, proof=certificate))
        except RemoteProtocolError as error:
            return self._refused(Refusal.MALFORMED, str(error))
        return Taken()

    def _refused(self, reason: Refusal, message: str) -> Refused:
        return Refused(int(reason), message, self._credential.now_ms)

    def _is_relay_of_ours(self, peer: PeerId) -> bool:
        link = self._network.link(peer) if self._network is not None else None
        return link is not None and Role.RELAY in link.roles & link.rights

    def _may_ask(self, address: str, share: int) -> bool:
        """One bucket for each IP address; the address asked from longest ago is forgotten."""
        if self._exchanges[address] >= EXCHANGES_PER_ADDRESS_MAX * share:
            return False
        if self._exchanges.total() >= EXCHANGES_MAX:
            return False
        now = trio.current_time()
        allowance = self._allowances.pop(address, None)
        if allowance is None:
            allowance = Allowance(QUESTIONS_MAX * share, QUESTIONS_PER_SECOND * share, now)
        self._allowances[address] = allowance
        if len(self._allowances) > ADDRESSES_MAX:
            self._allowances.popitem(last=False)
        return allowance.take(now)

    def _check_links(self) -> None:
        """Peers show their new certificates; who has none, or could not, has to link anew."""
        now = trio.current_time()
        for link in self._network.links() if self._network is not None else ():
            hello = link.session.hello
            if hello is None or link.peer == self._credential.peer:
                continue
            try:
                problem = self._credential.problem_of(hello, link.peer)
            except AimoError as error:
                problem = str(error)
            if problem is None:
                continue
            if link not in self._expired:
                log.info("link.expired", peer=link.peer, reason=problem)
                link.expire()
            if now - self._expired.setdefault(link, now) > EXPIRED_SECONDS:
                link.close(CloseCode.NotAdmitted, problem)


def asker_of(remote_address: str) -> str:
    """Who shares one allowance: an IPv4 address, or an IPv6 network, whose owner has all of it."""
    address = remote_address.partition("/tcp/")[0]
    try:
        parsed = ipaddress.IPv6Address(address.removeprefix("/ip6/").partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return f"/ip4/{parsed.ipv4_mapped}"
    return str(ipaddress.IPv6Network((parsed, NETWORK_BITS), strict=False))


async def _send(stream: ByteStream, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK_BYTES):
        await stream.write(data[start : start + _CHUNK_BYTES])


async def _receive(stream: ByteStream) -> bytes:
    data = b""
    while missing := members.missing_bytes(data):
        piece = await stream.read(missing)
        if not piece:
            raise NetworkError("the peer hung up")
        data += piece
    return data
