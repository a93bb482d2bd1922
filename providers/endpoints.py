"""Reads what an owner says about an upstream: its address and the file with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from aimo_node.errors import ConfigError

API_KEY_BYTES_MAX: Final = 8192


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
        raise ConfigError(
            "the openai engine needs --endpoint http://HOST:PORT, https://… or unix:/PATH"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("--endpoint takes no user, password or query; the key goes into a file")
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/") or "/v1"


def read_key(file: Path | None) -> str:
    """The key in `file`, empty without a file.

    Raises:
        ConfigError: it cannot be read or does not hold exactly one key.
    """
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            key = opened.read(API_KEY_BYTES_MAX).strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error.strerror}") from error
    if not key.isascii() or not key or any(byte <= 32 for byte in key):
        raise ConfigError(f"--api-key-file {file} must hold one key and nothing else")
    return key.decode("ascii")


def _split_url(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # raises too
    except ValueError as error:
        raise ConfigError(f"--endpoint is not a URL: {error}") from error
    return parts
