"""The fences know libp2p 0.8.1 from the inside; any other version is refused."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from aimo_node.errors import ConfigError

LIBP2P_VERSION: Final = "0.8.1"


def require_known_version() -> None:
    """Refuse a libp2p whose inner workings these fences were not written for.

    Raises:
        ConfigError: libp2p is missing or has another version.
    """
    try:
        found = metadata.version("libp2p")
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"libp2p is not installed; run: pip install libp2p=={LIBP2P_VERSION}"
        ) from error
    if found != LIBP2P_VERSION:
        raise ConfigError(
            f"libp2p {found} is installed, but this node's fences are written for "
            f"{LIBP2P_VERSION}; run: pip install libp2p=={LIBP2P_VERSION}"
        )
