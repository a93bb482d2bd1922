"""Consumers' API keys: the file they are in, and who a presented key belongs to."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aimo_node.config.private_files import is_private
from aimo_node.errors import AuthenticationFailed, ConfigError

KEY_FILE_BYTES_MAX: Final = 1024 * 1024
KEYS_MAX: Final = 1000  # each request compares with every one, 0.1 µs each
KEY_LENGTHS: Final = range(16, 257)  # shorter ones can be guessed; longer ones are no keys


def read_client_keys(file: Path) -> frozenset[bytes]:
    """The SHA-256 digests of the keys in `file`: one per line, ``#`` starts a comment line.

    Raises:
        ConfigError: unreadable, readable by others, empty, or a line that is no key. The message
            names the line, never the key.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the client keys file {file}: {error.strerror}") from error
    if not is_private(file, mode):
        raise ConfigError(f"others can read the client keys file {file}: chmod 600 it")
    if len(content) > KEY_FILE_BYTES_MAX:
        raise ConfigError(f"the client keys file {file} is over {KEY_FILE_BYTES_MAX} bytes")
    digests = frozenset(_digests(file, content.splitlines()))
    if not digests:
        raise ConfigError(f"the client keys file {file} holds no key")
    if len(digests) > KEYS_MAX:
        raise ConfigError(f"the client keys file {file} holds more than {KEYS_MAX} keys")
    return digests


def _digests(file: Path, lines: Iterable[bytes]) -> Iterable[bytes]:
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if len(key) not in KEY_LENGTHS or any(not 0x21 <= byte <= 0x7E for byte in key):
            raise ConfigError(
                f"line {number} of the client keys file {file} is no key: "
                f"{KEY_LENGTHS.start} to {KEY_LENGTHS.stop - 1} visible ASCII characters, no space"
            )
        yield hashlib.sha256(key).digest()


class ClientKeys:
    """Who may use the edge. Without keys everybody may, namelessly."""

    def __init__(self, digests: frozenset[bytes]) -> None:
        # the name tells consumers apart across the mesh; it is not a piece of what is compared
        self._names = {
            digest: hashlib.sha256(b"aimo consumer" + digest).hexdigest()[:16] for digest in digests
        }

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._names)

    def consumer(self, key: bytes | None) -> str:
        """The opaque name of who presents `key`; empty where no keys are configured.

        Raises:
            AuthenticationFailed: no key, or one nobody knows.
        """
        if not self._names:
            return ""
        if key is None:
            raise AuthenticationFailed(
                "No API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
        presented = hashlib.sha256(key).digest()
        found = ""
        for digest, name in self._names.items():  # all of them: the time tells nothing
            if hmac.compare_digest(digest, presented):
                found = name
        if not found:
            raise AuthenticationFailed("Incorrect API key.")
        return found
