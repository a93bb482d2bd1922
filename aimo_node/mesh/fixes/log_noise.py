"""Fault: libp2p logs thousands of lines, some to the root logger, some at a level of its own.

The mesh logs what matters itself. A stranger who sends garbage must not fill anybody's disk.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Final

_LOUD_LOGGERS: Final = ("libp2p", "multiaddr", "anyio_service")
_SELF_LEVELLED: Final = ("libp2p.network.auto_connector",)
_SILENT: Final = logging.CRITICAL + 1


def quieten(*root_users: ModuleType) -> None:
    """Silence libp2p's loggers, and divert the modules that log to the root logger.

    Args:
        root_users: modules of libp2p that call `logging.warning(…)` and the like, which besides
            installs a second handler on the root logger when there is none.
    """
    for name in _LOUD_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(_SILENT)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    for name in _SELF_LEVELLED:
        logging.getLogger(name).setLevel(logging.NOTSET)
    for module in root_users:
        module.logging = logging.getLogger(module.__name__)  # type: ignore[attr-defined]
