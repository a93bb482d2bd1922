"""Room for as many sockets as a node may hold."""

from __future__ import annotations

import resource
from typing import Final

OPEN_FILES: Final = 8_192
"""1,024 links and 512 handshakes on the mesh's side, 2,048 consumers on the other, and room; the
usual soft limit of 1,024 is less than either."""


def raise_limit() -> None:
    """Raise the soft limit on open files, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
