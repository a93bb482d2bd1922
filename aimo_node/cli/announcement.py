"""What a node that has become ready tells the person who started it."""

from __future__ import annotations

from collections.abc import Iterator

from aimo_node.domain.ids import Role
from aimo_node.domain.join import parse_join
from aimo_node.domain.ready import ReadyLine


def announce(ready: ReadyLine) -> str:
    """Several lines: what listens where, how others join, what to type next."""
    return "\n".join((*_facts(ready), *_joining(ready), *_next_steps(ready)))


def _facts(ready: ReadyLine) -> Iterator[str]:
    yield f"{' + '.join(ready.roles.names)} ready"
    yield f"  peer id   {ready.peer_id}"
    for address in ready.listen:
        yield f"  listens   {address}"
    if ready.http:
        yield f"  HTTP      {ready.http}"
    if ready.models:
        yield f"  models    {', '.join(ready.models)}"
    if ready.paused:
        yield "  PAUSED    takes no requests until: aimo provider resume"


def _joining(ready: ReadyLine) -> Iterator[str]:
    if ready.join and parse_join(ready.join).mesh is not None:
        yield "Members join with this; newcomers with what 'aimo invite' prints:"
        yield f"  --join {ready.join}"
    elif ready.join:
        yield "Others join with this (it carries the mesh secret, so show it to friends only):"
        yield f"  --join {ready.join}"


def _next_steps(ready: ReadyLine) -> Iterator[str]:
    if ready.http and Role.EDGE in ready.roles:
        model = ready.models[0] if ready.models else "MODEL"
        yield "Next:"
        yield f"  aimo models --edge {ready.http}"
        yield f"  aimo chat {model} --edge {ready.http}"
    elif ready.join and parse_join(ready.join).mesh is not None:
        yield "Next, for each newcomer:"
        yield "  aimo invite --role provider"
        yield "  aimo invite --role edge"
    elif Role.RELAY in ready.roles and ready.join:
        yield "Next, where a model is, and where an app is:"
        yield f"  aimo provider --engine llama --join {ready.join}"
        yield f"  aimo edge --join {ready.join}"
