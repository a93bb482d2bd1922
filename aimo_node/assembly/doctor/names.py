"""Check of DNS: the names in relays' addresses, and what they stand for."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.program import CONFIGURATION
from aimo_node.assembly.doctor.running_node import NODE
from aimo_node.domain.ids import PeerId
from aimo_node.domain.join import peer_of_address

RESOLVE_SECONDS: Final = 3.0
"""A name server that is down is given up by the system after five; three tell enough."""
ADDRESSES_MAX: Final = 32
"""Of all relays together; more sockets at once would be a burden to others."""
_NAME_KINDS: Final = {"dns": 0, "dns4": int(socket.AF_INET), "dns6": int(socket.AF_INET6)}
_IP_KINDS: Final = frozenset({"ip4", "ip6"})
_NO_ANSWER: Final = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})


@dataclass(frozen=True, slots=True)
class Place:
    """One address of one relay.

    Attributes:
        name: the host name in it; empty if it has an IP address.
        ends: IP addresses and ports to connect to.
        error: why there are none.
        server_silent: it was the name server that did not answer.
    """

    peer: PeerId
    text: str
    name: str = ""
    ends: tuple[tuple[str, int], ...] = ()
    error: str = ""
    server_silent: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where all relays are, as far as this machine can find out."""

    places: Sequence[Place] = field(default_factory=tuple)

    def of(self, peer: PeerId) -> list[Place]:
        """The addresses of one relay."""
        return [place for place in self.places if place.peer == peer]

    @property
    def peers(self) -> list[PeerId]:
        """Every relay, in the order of the join strings."""
        return list(dict.fromkeys(place.peer for place in self.places))


async def _resolve_all(case: Case) -> Places:
    targets = case.seen(CONFIGURATION).targets
    node = case.glimpse(NODE)
    known = node.addresses if node is not None else ()
    texts = [*known, *(text for target in targets for text in target.addresses)]
    found: dict[str, Place] = {}
    async with trio.open_nursery() as nursery:

        async def look_up(text: str) -> None:
            found[text] = await _resolve(text)

        for text in texts[:ADDRESSES_MAX]:
            nursery.start_soon(look_up, text)
    return Places([found[text] for text in dict.fromkeys(texts[:ADDRESSES_MAX])])


async def _resolve(text: str) -> Place:
    peer = peer_of_address(text)
    parts = text.strip("/").split("/")
    kind, host = parts[0], parts[1]
    if len(parts) != 6 or parts[2] != "tcp" or not parts[3].isdigit():
        return Place(peer, text, error="not a plain TCP address")
    port = int(parts[3])
    if kind in _IP_KINDS:
        return Place(peer, text, ends=((host, port),))
    if kind not in _NAME_KINDS:
        return Place(peer, text, error="not a plain TCP address")
    try:
        with trio.fail_after(RESOLVE_SECONDS):
            return await _look_up(Place(peer, text, host), port, _NAME_KINDS[kind])
    except trio.TooSlowError:
        late = f"no answer within {RESOLVE_SECONDS:g} s"
        return Place(peer, text, host, error=late, server_silent=True)


async def _look_up(place: Place, port: int, family: int) -> Place:
    try:
        found = await trio.socket.getaddrinfo(
            place.name, port, family=family, type=trio.socket.SOCK_STREAM
        )
    except socket.gaierror as error:
        silent = error.errno in _NO_ANSWER
        return replace(place, error=error.strerror or "", server_silent=silent)
    except (OSError, UnicodeError) as error:
        return replace(place, error=str(error))
    ends = dict.fromkeys((str(end[0]), int(end[1])) for *_, end in found)
    return replace(place, ends=tuple(ends))


def judge_names(seen: Places) -> list[Finding]:
    """One finding for each name; a relay that has other addresses is not lost with one name."""
    named = [place for place in seen.places if place.name]
    if not named:
        return [ok(Layer.DNS, "no address has a name in it")]
    return [_judge_name(place, seen) for place in named]


def _judge_name(place: Place, seen: Places) -> Finding:
    if place.ends:
        return ok(Layer.DNS, f"{place.name} is {', '.join(end[0] for end in place.ends)}")
    said = f"{place.name} has no address: {place.error.lower()}"
    if place.server_silent:
        do = "see whether this machine has a network and which name server /etc/resolv.conf names"
        do += "; or the name is wrong"
    else:
        do = (
            "see whether the name is right, and whether it has a record: getent hosts " + place.name
        )
    is_lost = not any(other.ends for other in seen.of(place.peer))
    return problem(Layer.DNS, said, do) if is_lost else warning(Layer.DNS, said, do)


DNS: Final = Check(
    "dns",
    Layer.DNS,
    _resolve_all,
    judge_names,
    needs=(CONFIGURATION,),
    follows=(NODE,),
    seconds=RESOLVE_SECONDS + 0.5,
)
