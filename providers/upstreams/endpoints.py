"""Reads what an owner says about an upstream: its address, and where its key is."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import structlog

from aimo_node.errors import ConfigError
from providers.children.child_environment import withhold

API_KEY_BYTES_MAX: Final = 8192
_OTHERS_MAY_READ: Final = stat.S_IRGRP | stat.S_IROTH

_log: Final = structlog.get_logger()


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Where to connect and the path of the API: ``http://host:8000`` and ``/v1``.

    Raises:
        ConfigError: neither a URL nor a socket, or one that holds a secret.
    """
    if endpoint.startswith("unix:"):
        path = endpoint.removeprefix("unix:").removeprefix("//")
        if path.startswith("/"):
            return f"unix:{path}", "/v1"
        raise ConfigError(f"--endpoint {endpoint}: a socket is named as unix:/path/to/socket")
    parts = _split_url(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        what = f"--endpoint {endpoint}: expected" if endpoint else "the engine needs --endpoint"
        raise ConfigError(f"{what} http://HOST:PORT, https://… or unix:/PATH")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("--endpoint takes no user, password or query; the key goes into a file")
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/") or "/v1"


def read_key(file: Path | None, variable: str = "") -> str:
    """The key in `file`, or else in the environment; empty if neither is given.

    A file that others may read is used, but the log says so. No child process inherits `variable`.

    Args:
        variable: name of an environment variable.

    Raises:
        ConfigError: both are given, or what is given cannot be read or is not exactly one key. The
            message never quotes it.
    """
    if file is None:
        return _key_in_environment(variable) if variable else ""
    if variable:
        raise ConfigError("give either --api-key-file or --api-key-env, not both")
    try:
        with file.open("rb") as opened:
            key = opened.read(API_KEY_BYTES_MAX).strip()
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error.strerror}") from error
    if os.name == "posix" and mode & _OTHERS_MAY_READ:
        _log.warning("key_file.open_to_others", file=str(file), fix=f"chmod 600 {file}")
    return _checked_key(key, f"--api-key-file {file}")


def _key_in_environment(variable: str) -> str:
    withhold(variable)
    key = os.environ.get(variable)
    if key is None:
        raise ConfigError(f"--api-key-env {variable}: there is no such environment variable")
    return _checked_key(os.fsencode(key).strip(), f"--api-key-env {variable}: the variable")


def _checked_key(key: bytes, place: str) -> str:
    if len(key) >= API_KEY_BYTES_MAX or not key.isascii() or not key:
        raise ConfigError(f"{place} must hold one key and nothing else")
    if any(byte <= 32 or byte == 127 for byte in key):
        raise ConfigError(f"{place} must hold one key and nothing else")
    return key.decode("ascii")


def _split_url(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # raises too
    except ValueError as error:
        raise ConfigError(f"--endpoint is not a URL: {error}") from error
    return parts
