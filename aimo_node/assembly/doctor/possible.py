"""Which checks can be made with the libp2p that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aimo_node.assembly.doctor.check import Check
from aimo_node.assembly.doctor.program import VERSIONS
from aimo_node.errors import ConfigError
from aimo_node.mesh.fixes.version import require_known_version


def possible_checks() -> Sequence[Check[Any]]:
    """All checks; on another libp2p that of the versions only: the rest cannot be loaded there."""
    try:
        require_known_version()
    except ConfigError:
        return (VERSIONS,)
    from aimo_node.assembly.doctor.checkup import CHECKS  # noqa: PLC0415 (loads libp2p)

    return CHECKS
