"""Check of the way to the relays: does TCP get through, and who answers there."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem
from aimo_node.assembly.doctor.names import DNS, Place
from aimo_node.domain.ids import PeerId

CONNECT_SECONDS: Final = 2.5
"""A first packet that is lost is sent again after one second."""
GREETING_SECONDS: Final = 1.0
GREETING: Final = b"\x13/multistream/1.0.0\n"
"""What both ends of every libp2p connection say first."""
_ANSWER_BYTES: Final = 256


class Answer(enum.IntEnum):
    """Who answers at an address; the greater, the nearer to a relay."""

    NO_TCP = 0
    NOWHERE = 1
    TIMEOUT = 2
    REFUSED = 3
    SILENT = 4
    OTHER = 5
    HTTP = 6
    LIBP2P = 7


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one address."""

    peer: PeerId
    host: str
    port: int
    answer: Answer
    said: str = ""
    seconds: float = 0.0


async def _knock_everywhere(case: Case) -> list[Reply]:
    replies: list[Reply] = []
    async with trio.open_nursery() as nursery:

        async def knock(place: Place, host: str, port: int) -> None:
            replies.append(await _knock(place.peer, host, port))

        for place in case.seen(DNS).places:
            for host, port in place.ends:
                nursery.start_soon(knock, place, host, port)
            if not place.ends and not place.name:
                replies.append(Reply(place.peer, place.text, 0, Answer.NO_TCP, place.error))
    order = case.seen(DNS).peers
    return sorted(replies, key=lambda reply: (order.index(reply.peer), -reply.answer))


async def _knock(peer: PeerId, host: str, port: int) -> Reply:
    started = trio.current_time()
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as connecting:
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await connecting.connect((host, port))
        except trio.TooSlowError:
            return Reply(peer, host, port, Answer.TIMEOUT, f"no answer in {CONNECT_SECONDS:g} s")
        except OSError as error:
            refused = error.errno == errno.ECONNREFUSED
            answer = Answer.REFUSED if refused else Answer.NOWHERE
            said = os.strerror(error.errno).lower() if error.errno else str(error)
            return Reply(peer, host, port, answer, said)
        seconds = trio.current_time() - started
        greeting = await _greet(connecting)
    return Reply(peer, host, port, *_who_says(greeting), seconds)


async def _greet(connected: trio.socket.SocketType) -> bytes:
    """What the other side says to a libp2p greeting; empty if nothing."""
    greeting = b""
    with trio.move_on_after(GREETING_SECONDS):
        try:
            await connected.send(GREETING + b"\n\n")
            while len(greeting) < len(GREETING):
                more = await connected.recv(_ANSWER_BYTES)
                if not more:
                    break
                greeting += more
        except OSError:
            return greeting
    return greeting


def _who_says(greeting: bytes) -> tuple[Answer, str]:
    if greeting.startswith(GREETING):
        return Answer.LIBP2P, "libp2p"
    if not greeting:
        return Answer.SILENT, "takes connections, but says nothing"
    first = greeting.splitlines()[0][:60].decode("ascii", "replace")
    said = "".join(letter if letter.isprintable() else "?" for letter in first)
    if greeting.startswith((b"HTTP/", b"<")):
        return Answer.HTTP, f"an HTTP server answers ({said})"
    return Answer.OTHER, f"another program answers ({said})"


def judge_replies(seen: Sequence[Reply]) -> list[Finding]:
    """One finding for each relay: it needs one address that works."""
    if not seen:
        return [ok(Layer.RELAY, "this node joins no relay")]
    peers = dict.fromkeys(reply.peer for reply in seen)
    return [_judge_relay([one for one in seen if one.peer == peer]) for peer in peers]


def _judge_relay(replies: Sequence[Reply]) -> Finding:
    best = max(replies, key=lambda reply: reply.answer)
    where = f"{best.host} port {best.port}" if best.port else best.host
    if best.answer is Answer.LIBP2P:
        good = sum(reply.answer is Answer.LIBP2P for reply in replies)
        took = f"{best.seconds * 1000:.0f} ms"
        many = f"; {good} of {len(replies)} addresses work" if len(replies) > 1 else ""
        return ok(Layer.RELAY, f"{best.peer} answers at {where} in {took}{many}")
    more = f", nor do {len(replies) - 1} other addresses help" if len(replies) > 1 else ""
    return problem(Layer.RELAY, f"{best.peer} at {where}: {best.said}{more}", _mend(best))


def _mend(best: Reply) -> str:
    match best.answer:
        case Answer.REFUSED:
            return (
                f"that machine is there, but nothing listens on port {best.port}: start the relay,"
                " and see that its --listen has this port"
            )
        case Answer.TIMEOUT:
            return (
                f"something drops the packets: open TCP port {best.port} in the relay's firewall"
                " and in its provider's; see that outgoing connections are allowed here"
            )
        case Answer.SILENT:
            return (
                "either the relay hangs: restart it; or that is not its libp2p port (default 4001):"
                " use the join string that it prints now"
            )
        case Answer.HTTP | Answer.OTHER:
            return (
                "that is not the relay's libp2p port (default 4001): use the join string that the"
                " relay prints now, and see that no proxy is in between"
            )
        case Answer.NO_TCP:
            return "join by an address such as /ip4/192.0.2.1/tcp/4001/p2p/… or /dns4/…"
        case _:
            return "see whether this machine has a network and a route to that address"


REACH: Final = Check(
    "reach",
    Layer.RELAY,
    _knock_everywhere,
    judge_replies,
    needs=(DNS,),
    seconds=CONNECT_SECONDS + GREETING_SECONDS + 0.5,
)
