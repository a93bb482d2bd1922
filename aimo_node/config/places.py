"""Where files of ours lie when nobody says otherwise, after the XDG base directory rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def default_state_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/aimo`, or `~/.local/state/aimo`."""
    root = environ.get("XDG_STATE_HOME", "")
    return (Path(root) if root.startswith("/") else home_folder() / ".local" / "state") / "aimo"


def home_folder() -> Path:
    """The user's home, or `/` for a user without one, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def config_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/aimo`, or `~/.config/aimo`."""
    root = environ.get("XDG_CONFIG_HOME", "")
    return (Path(root) if root.startswith("/") else home_folder() / ".config") / "aimo"
