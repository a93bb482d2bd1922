"""All checks, in the order in which they are told."""

from __future__ import annotations

from typing import Any, Final

from aimo_node.assembly.doctor.admission import MEMBERSHIP
from aimo_node.assembly.doctor.check import Check
from aimo_node.assembly.doctor.clock import CLOCK
from aimo_node.assembly.doctor.engines import ENGINES
from aimo_node.assembly.doctor.folder import DISK, IDENTITY, STATE
from aimo_node.assembly.doctor.names import DNS
from aimo_node.assembly.doctor.nat import NAT
from aimo_node.assembly.doctor.ports import HTTP, KEYS, LISTEN
from aimo_node.assembly.doctor.program import CONFIGURATION, OPEN_FILES, VERSIONS
from aimo_node.assembly.doctor.proof import PROOF
from aimo_node.assembly.doctor.reach import REACH
from aimo_node.assembly.doctor.running_node import NODE

CHECKS: Final[tuple[Check[Any], ...]] = (
    VERSIONS,
    CONFIGURATION,
    OPEN_FILES,
    STATE,
    DISK,
    NODE,
    IDENTITY,
    PROOF,
    LISTEN,
    HTTP,
    KEYS,
    DNS,
    REACH,
    MEMBERSHIP,
    NAT,
    ENGINES,
    CLOCK,
)
"""This machine first, then the way out, then those at its end."""
