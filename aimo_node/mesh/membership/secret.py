"""The closed mesh's secret: read from a file, or made at a relay's first start."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from aimo_node.config.private_files import is_private
from aimo_node.errors import ConfigError
from aimo_node.protocol.handshake import SECRET_BYTES


def read_secret(path: Path) -> bytes:
    """The secret in `path`: 64 hexadecimal characters.

    Raises:
        ConfigError: it cannot be read, others may read it, or it holds something else.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * SECRET_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the mesh secret {path}: {error.strerror}") from error
    if not is_private(path, mode):
        raise ConfigError(f"others may read the mesh secret {path}: run chmod 600 {path}")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        count = 2 * SECRET_BYTES
        raise ConfigError(
            f"{path} is not a mesh secret: it must hold {count} hexadecimal characters"
        )
    return secret


def load_or_make_secret(path: Path) -> bytes:
    """The secret in `path`, made (mode 0600) if there is none yet.

    Raises:
        ConfigError: as `read_secret`, or it cannot be written.
    """
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(SECRET_BYTES) + "\n", "ascii")
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot write the mesh secret {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return read_secret(path)
