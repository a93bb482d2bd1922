"""Checks of this machine's own ports: can the node listen where it is told to."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, skipped
from aimo_node.assembly.doctor.program import CONFIGURATION
from aimo_node.assembly.doctor.running_node import NODE, NodeSeen
from aimo_node.errors import ConfigError

_IP_KINDS: Final = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
PRIVILEGED_PORTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Door:
    """One address to listen on.

    Attributes:
        flag: what chooses it.
        error: number of the error that binding gave; 0 for none, None if it was not tried.
        malformed: it is no address at all.
        untried: a node that does not say where it listens may have it.
    """

    text: str
    flag: str
    port: int = 0
    error: int | None = None
    malformed: bool = False
    untried: bool = False


async def _try_listen(case: Case) -> list[Door]:
    node = case.glimpse(NODE)
    if node is not None and node.answer is not None:
        return [Door(text, "--listen") for text in node.answer["listen"]]
    texts = case.seen(CONFIGURATION).usable.mesh.listen
    if _is_unclear(node):
        return [Door(text, "--listen", untried=True) for text in texts]
    return [_try_multiaddr(text) for text in texts]


async def _try_http(case: Case) -> list[Door]:
    node = case.glimpse(NODE)
    if node is not None and node.answer is not None:
        url = node.answer["http"]
        return [Door(url, "--http")] if url else []
    bind = case.seen(CONFIGURATION).usable.edge.http_bind
    if bind is None:
        return []
    host, port = bind
    if _is_unclear(node):
        return [Door(f"{host}:{port}", "--http", port, untried=True)]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return [Door(f"{host}:{port}", "--http", port, _bind(family, host, port))]


def _is_unclear(node: NodeSeen | None) -> bool:
    return node is not None and (node.holder is not None or node.is_foreign)


def _try_multiaddr(text: str) -> Door:
    parts = text.strip("/").split("/")
    if len(parts) < 4 or parts[0] not in _IP_KINDS or parts[2] != "tcp" or not parts[3].isdigit():
        return Door(text, "--listen", malformed=True)
    port = int(parts[3])
    return Door(text, "--listen", port, _bind(_IP_KINDS[parts[0]], parts[1], port))


def _bind(family: socket.AddressFamily, host: str, port: int) -> int:
    """Bind and let go at once, as the node would; the number of the error."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((host, port))
            listening.listen(1)
    except OverflowError:
        return errno.EINVAL
    except OSError as error:
        return error.errno if error.errno and error.errno > 0 else errno.EADDRNOTAVAIL
    return 0


def judge_doors(seen: Sequence[Door]) -> list[Finding]:
    """One finding for each address."""
    if not seen:
        return [ok(Layer.PORT, "there is nothing to listen on")]
    return [_judge_door(door) for door in seen]


def _judge_door(door: Door) -> Finding:
    if door.untried:
        return skipped(Layer.PORT, f"{door.text} was not tried: the node may well have it")
    if door.malformed:
        do = f"give {door.flag} an address such as /ip4/0.0.0.0/tcp/4001"
        return problem(Layer.PORT, f"{door.text} is no TCP address to listen on", do)
    if door.error is None:
        return ok(Layer.PORT, f"the node listens on {door.text.partition('/p2p/')[0]}")
    if not door.error:
        return ok(Layer.PORT, f"{door.text} is free")
    said = f"cannot listen on {door.text}: {os.strerror(door.error).lower()}"
    return problem(Layer.PORT, said, _mend(door))


def _mend(door: Door) -> str:
    other = f"choose another one with {door.flag}"
    if door.error == errno.EADDRINUSE:
        return f"another program has port {door.port}, `ss -ltnp` names it: end it, or {other}"
    if door.error == errno.EADDRNOTAVAIL:
        return f"no interface of this machine has that address: {other}"
    if door.error == errno.EACCES and door.port < PRIVILEGED_PORTS:
        return f"ports below {PRIVILEGED_PORTS} are for root: {other}"
    return other


LISTEN: Final = Check(
    "listen", Layer.PORT, _try_listen, judge_doors, needs=(CONFIGURATION,), follows=(NODE,)
)


async def _read_door_files(case: Case) -> str:
    """Why the files that the HTTP door needs cannot be used; empty if they can."""
    from aimo_node.edge.auth import read_client_keys  # noqa: PLC0415 (only with a door)
    from aimo_node.edge.serving.tls import server_context  # noqa: PLC0415

    edge = case.seen(CONFIGURATION).usable.edge
    try:
        if edge.http_bind is not None and edge.client_keys_file is not None:
            read_client_keys(edge.client_keys_file)
        if edge.http_bind is not None and edge.tls_cert is not None and edge.tls_key is not None:
            server_context(edge.tls_cert, edge.tls_key)
    except ConfigError as error:
        return str(error)
    return ""


def judge_door_files(seen: str) -> list[Finding]:
    """Keys of consumers and the certificate."""
    if seen:
        do = "mend that file; see --client-keys-file, --tls-cert and --tls-key"
        return [problem(Layer.AUTH, seen, do)]
    return [ok(Layer.AUTH, "the keys and certificates that the HTTP door needs can be read")]


KEYS: Final = Check("keys", Layer.AUTH, _read_door_files, judge_door_files, needs=(CONFIGURATION,))
HTTP: Final = Check(
    "http", Layer.PORT, _try_http, judge_doors, needs=(CONFIGURATION,), follows=(NODE,)
)
