"""What of the node's environment its child processes inherit: not the keys of other engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_withheld: Final[set[str]] = set()
"""As the environment itself, one for the whole process."""


def withhold(variable: str) -> None:
    """No child that is started from now on gets `variable`: an owner's key is in it."""
    _withheld.add(variable)


def for_children(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what is withheld."""
    return {name: value for name, value in environment.items() if name not in _withheld}
