"""What a check has to say: the layer, the verdict, what was seen, what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Layer(enum.StrEnum):
    """Where a fault is; the word that people and scripts look for."""

    CONFIG = "config"
    VERSION = "version"
    LIMITS = "limits"
    STATE = "state"
    DISK = "disk"
    NODE = "node"
    IDENTITY = "identity"
    MEMBERSHIP = "membership"
    PORT = "port"
    DNS = "dns"
    RELAY = "relay"
    NAT = "nat"
    ENGINE = "engine"
    AUTH = "auth"
    CLOCK = "clock"


class Verdict(enum.StrEnum):
    """How bad it is. Only a PROBLEM makes the program exit with 1."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        seen: what was looked at and how it is.
        do: what would mend it; empty if nothing has to be done.
        check: name of the check; filled in by the examination.
    """

    layer: Layer
    verdict: Verdict
    seen: str
    do: str = ""
    check: str = ""

    def to_json(self) -> dict[str, str]:
        """As ``--json`` prints it."""
        return {
            "check": self.check,
            "layer": self.layer.value,
            "verdict": self.verdict.value,
            "seen": self.seen,
            "do": self.do,
        }


def ok(layer: Layer, seen: str) -> Finding:
    """Nothing is wrong."""
    return Finding(layer, Verdict.OK, seen)


def warning(layer: Layer, seen: str, do: str) -> Finding:
    """It works, but it may not for long, or not as well as it could."""
    return Finding(layer, Verdict.WARNING, seen, do)


def problem(layer: Layer, seen: str, do: str) -> Finding:
    """It cannot work like this."""
    return Finding(layer, Verdict.PROBLEM, seen, do)


def skipped(layer: Layer, why: str) -> Finding:
    """It was not looked at."""
    return Finding(layer, Verdict.SKIPPED, why)
