"""Check of address translation: how relays see this machine, compared with how it sees itself.

Every relay was dialled from the same local port. A translation that shows two relays two different
ports is symmetric: what one peer sees is of no use to another, so no direct path can be punched.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aimo_node.assembly.doctor.admission import MEMBERSHIP
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict, ok, skipped, warning
from aimo_node.assembly.doctor.names import DNS
from aimo_node.mesh.probes.meeting import Sighting


@dataclass(frozen=True, slots=True)
class Views:
    """How relays see this machine.

    Attributes:
        relays: how many were to be asked.
    """

    relays: int
    sightings: Sequence[Sighting]


async def _collect(case: Case) -> Views:
    meetings = case.seen(MEMBERSHIP).meetings
    relays = len(case.seen(DNS).peers)
    return Views(relays, [one.sighting for one in meetings if one.sighting is not None])


def judge_views(seen: Views) -> list[Finding]:
    """What can be known without a third party, and where that ends."""
    if not seen.relays:
        return [skipped(Layer.NAT, "unknown: it takes a relay to see this machine from outside")]
    views = [(one.local, one.observed) for one in seen.sightings if one.observed is not None]
    if not views:
        return [skipped(Layer.NAT, "unknown: no relay says how it sees this machine")]
    translated = [(local, told) for local, told in views if _plain(local[0]) != _plain(told[0])]
    if not translated:
        return [ok(Layer.NAT, f"none: relays see {views[0][1][0]}, as this machine does itself")]
    return [_judge_translation(translated)]


def _judge_translation(views: Sequence[tuple[tuple[str, int], tuple[str, int]]]) -> Finding:
    local, told = views[0]
    said = f"{local[0]} is seen as {told[0]}"
    others = [other for here, other in views[1:] if here[1] == local[1]]
    if not others:
        kept = "the same" if local[1] == told[1] else "another"
        said = f"of unknown kind: {said}, with {kept} port; telling the kind takes two relays"
        return Finding(Layer.NAT, Verdict.OK, said, "join a second relay to know; nothing is wrong")
    if all(other == told for other in others):
        said = f"default (endpoint independent): {said} by every relay; direct paths can be punched"
        return ok(Layer.NAT, said)
    seen = ", ".join(f"{host}:{port}" for host, port in (told, *others))
    do = (
        "nothing has to be done: what others send to this node goes through relays. If it is to be"
        " dialled, forward a port to it and give --listen and --announce; or use another router"
    )
    return warning(Layer.NAT, f"symmetric: relays see {seen} for one port of this machine", do)


def _plain(host: str) -> str:
    """An IPv4 address that came in IPv6 clothes, without them."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


NAT: Final = Check("nat", Layer.NAT, _collect, judge_views, needs=(MEMBERSHIP,))
