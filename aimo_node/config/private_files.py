"""Whether a file with a secret is for this node's user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def is_private(file: Path, mode: int) -> bool:
    """Whether nobody else may read it.

    A credential from systemd is: its folder is closed to others. Since systemd 254 its access list
    names the unit's user, and such a list shows as rights of the group.

    Args:
        file: as it was named to this node.
        mode: its `st_mode`.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    is_credential = bool(credentials) and file.parent == Path(credentials or "")
    return not mode & (stat.S_IRWXO if is_credential else _OTHERS)
