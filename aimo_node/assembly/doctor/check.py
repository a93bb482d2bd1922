"""What a check is, and the case it works on: the subject and what earlier checks saw."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from aimo_node.assembly.doctor.finding import Finding, Layer
from aimo_node.assembly.doctor.machine import Machine
from aimo_node.config.loading import LoadedSettings
from aimo_node.domain.ids import Role

PROBE_SECONDS: Final = 4.0
"""For a probe that says nothing else: it asks this machine only."""

Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom the doctor looks at.

    Attributes:
        load: reads the configuration; raises `ConfigError`.
        roles: what the node is to do, None if the user did not say.
        lock_file: name of the file that a running node holds locked in its state folder.
        open_files: how many files a node wants to be able to open.
    """

    load: Callable[[], LoadedSettings]
    lock_file: str
    open_files: int
    roles: Role | None = None
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Check(Generic[Seen]):
    """One thing to look at.

    Attributes:
        layer: where it belongs when nothing can be said but that it was skipped.
        probe: looks; may take `seconds` and is cancelled then.
        judge: what it means; at least one finding. Pure.
        needs: checks without whose success this one makes no sense.
        follows: checks that must have ended, however they ended.
    """

    name: str
    layer: Layer
    probe: Callable[[Case], Awaitable[Seen]]
    judge: Callable[[Seen], Sequence[Finding]]
    needs: tuple[Check[Any], ...] = ()
    follows: tuple[Check[Any], ...] = ()
    seconds: float = PROBE_SECONDS


class Case:
    """One examination under way."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.machine = subject.machine
        self._seen: dict[str, object] = {}

    def note(self, check: Check[Seen], seen: Seen) -> None:
        """Remember what a check saw."""
        self._seen[check.name] = seen

    def seen(self, check: Check[Seen]) -> Seen:
        """What a check saw that this one needs."""
        return cast("Seen", self._seen[check.name])

    def glimpse(self, check: Check[Seen]) -> Seen | None:
        """What a check saw that this one follows; None if it saw nothing."""
        return cast("Seen | None", self._seen.get(check.name))
