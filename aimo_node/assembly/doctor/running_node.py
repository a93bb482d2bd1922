"""Check of the node itself: does one run with this state folder, and what does it say."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from aimo_node import __version__
from aimo_node.assembly.control_socket import ask_node
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, skipped, warning
from aimo_node.assembly.doctor.threads import in_thread
from aimo_node.assembly.node_status import NODE_STATUS
from aimo_node.domain.ids import Role
from aimo_node.errors import ConfigError

ANSWER_SECONDS: Final = 2.0
_REQUEST: Final = {"command": NODE_STATUS}
_UNKNOWN: Final = "does not know that command"
_PID_BYTES_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What is known of a running node.

    Attributes:
        folder: its state folder; None if the configuration cannot be read.
        holder: process id of whoever holds the folder's lock; None if nobody does.
        answer: what it says of itself; None if it said nothing.
        error: why it said nothing.
        is_foreign: this user may not even look whether one runs.
        wanted: roles the user named.
        relays: to which it has a link ("") or not (why, as far as it knows), by peer id.
        addresses: of its relays.
    """

    folder: Path | None
    holder: str | None = None
    answer: Mapping[str, Any] | None = None
    error: str = ""
    wanted: Role | None = None
    relays: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    is_foreign: bool = False


async def _ask(case: Case) -> NodeSeen:
    try:
        folder = case.subject.load().settings.node.state
    except ConfigError:
        return NodeSeen(None)
    try:
        holder = _holder(folder / case.subject.lock_file)
    except PermissionError:
        return NodeSeen(folder, is_foreign=True)
    if holder is None:
        return NodeSeen(folder)
    wanted = case.subject.roles
    try:
        answer = await in_thread(partial(ask_node, folder, _REQUEST, ANSWER_SECONDS))
    except ConfigError as error:
        return NodeSeen(folder, holder, None, str(error), wanted)
    return NodeSeen(
        folder,
        holder,
        answer,
        wanted=wanted,
        relays={
            one["peer"]: "" if one["linked"] else one["problem"] or "no link yet"
            for one in answer["relays"]
        },
        addresses=tuple(text for one in answer["relays"] for text in one["addresses"]),
    )


def roles_running(seen: NodeSeen | None) -> Role:
    """What the node that runs does; NONE if none runs or it does not say."""
    roles = Role.NONE
    if seen is not None and seen.answer is not None:
        for role in Role:
            if role.names and role.names[0] in seen.answer["roles"]:
                roles |= role
    return roles


def _holder(lock: Path) -> str | None:
    """Who holds the lock; a node that starts this very moment waits for us to let it go.

    Raises:
        PermissionError: this user may not look.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise
    except OSError:
        return None  # no node was ever there, or there is no such folder
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, _PID_BYTES_MAX).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def judge_node(seen: NodeSeen) -> list[Finding]:
    """A node that runs must answer, and be the one that was meant."""
    if seen.folder is None:
        return [skipped(Layer.NODE, "not looked at, because config has a problem")]
    if seen.is_foreign:
        said = f"whether one runs with {seen.folder} is not for this user to see"
        do = "run the doctor as the user of the node: sudo -u USER aimo doctor …"
        return [warning(Layer.NODE, said, do)]
    if seen.holder is None:
        said = (
            f"none runs with the state folder {seen.folder}; what follows was tried by the doctor"
        )
        return [ok(Layer.NODE, said)]
    return [_judge_silence(seen) if seen.answer is None else _judge_answer(seen, seen.answer)]


def _judge_answer(seen: NodeSeen, answer: Mapping[str, Any]) -> Finding:
    who = f"process {seen.holder} runs as {', '.join(answer['roles'])}"
    if answer["version"] != __version__:
        said = f"{who} with aimo {answer['version']}, but {__version__} is installed"
        return warning(Layer.VERSION, said, "restart the node")
    if seen.wanted is not None and set(seen.wanted.names) != set(answer["roles"]):
        names = ", ".join(seen.wanted.names)
        said = f"{who} with the state folder {seen.folder}, so no {names} can use that folder"
        return problem(Layer.NODE, said, f"give the {names} a folder of its own with --state DIR")
    if not answer["ready"]:
        said = f"{who}, but is not ready: it waits for a relay or for its engine, or drains"
        return warning(Layer.NODE, said, "see what is found below, and the node's log")
    return ok(Layer.NODE, f"{who}, ready, {answer['links_open']} links open")


def _judge_silence(seen: NodeSeen) -> Finding:
    if _UNKNOWN in seen.error:
        said = f"process {seen.holder} runs an older aimo that cannot say how it is"
        return warning(Layer.VERSION, said, "restart the node")
    said = f"process {seen.holder} holds the state folder, but does not answer: {seen.error}"
    do = f"look at its log and restart it; if it does not end by itself: kill -9 {seen.holder}"
    return problem(Layer.NODE, said, do)


NODE: Final = Check("node", Layer.NODE, _ask, judge_node, seconds=ANSWER_SECONDS + 0.5)
