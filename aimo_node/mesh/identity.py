"""The node's Ed25519 identity: the key file, peer ids, signing and verifying.

Needs neither libp2p nor a running node, so that `aimo id` stays fast.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import base58
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from aimo_node.domain.ids import PeerId
from aimo_node.errors import ConfigError, InvalidMessageFormat

Verify = Callable[[bytes, bytes], bool]
"""Called with message and signature; true when the signature is the peer's own."""

_KEY_FILE_BYTES_MAX: Final = 4096
"""An Ed25519 key in PEM form has 119 bytes; whatever is longer is something else."""

_FOREIGN_ACCESS: Final = stat.S_IRWXG | stat.S_IRWXO

_INLINED_ED25519: Final = bytes.fromhex("002408011220")
"""What a peer id with an inlined Ed25519 key starts with: identity multihash of 36 bytes, then
the protobuf of libp2p's PublicKey (type Ed25519, 32 bytes of data)."""

_PUBLIC_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair and the peer id it stands for. The seed never appears in `repr`."""

    seed: bytes = field(repr=False)
    public_key: bytes
    peer_id: PeerId
    signing_key: SigningKey = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """Derive the pair from its 32-byte seed."""
        # PyNaCl rather than cryptography: 21 µs per signature against 33.
        signing_key = SigningKey(seed)
        public_key = bytes(signing_key.verify_key)
        return cls(seed, public_key, _peer_id_from_public_key(public_key), signing_key)


def load_identity(path: Path) -> KeyPair:
    """Load the node's key from `path`, creating it (mode 0600) if there is none yet.

    Two nodes that start at once with the same path get the same key: the file appears whole or
    not at all, and the first one wins.

    Raises:
        ConfigError: the file is readable by others, malformed or cannot be read or written; the
            message names the fix.
    """
    try:
        if not path.exists():
            _create(path)
        return read_identity(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read or create the identity {path}: {error.strerror}; "
            "choose another folder with --state"
        ) from error


def read_identity(path: Path) -> KeyPair:
    """As `load_identity`, of a file that is there.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is readable by others or malformed; the message names the fix.
    """
    return KeyPair.from_seed(_parse(path, _read_privately(path)))


def peer_id_of(key: KeyPair) -> PeerId:
    """The peer id that stands for `key`."""
    return key.peer_id


def sign(key: KeyPair, message: bytes) -> bytes:
    """Sign `message`; the signature has 64 bytes."""
    return bytes(key.signing_key.sign(message).signature)


def public_key_from_peer_id(peer_id: PeerId) -> Verify:
    """The function that verifies signatures of `peer_id`, whose key lies in the id itself.

    Raises:
        InvalidMessageFormat: not a peer id, or one of another kind than Ed25519.
    """
    try:
        raw = base58.b58decode(peer_id)
    except ValueError as error:
        raise InvalidMessageFormat(f"{peer_id[:64]!r} is not a peer id") from error
    if len(raw) != len(_INLINED_ED25519) + _PUBLIC_KEY_BYTES or not raw.startswith(
        _INLINED_ED25519
    ):
        raise InvalidMessageFormat(f"{peer_id[:64]!r} is not the peer id of an Ed25519 key")
    return verifier(raw[len(_INLINED_ED25519) :])


def verifier(public_key: bytes) -> Verify:
    """The function that verifies signatures of a public key of 32 bytes."""
    key = VerifyKey(public_key)

    def verify(message: bytes, signature: bytes) -> bool:
        try:
            key.verify(message, signature)
        except (CryptoError, ValueError):
            return False
        return True

    return verify


def _peer_id_from_public_key(public_key: bytes) -> PeerId:
    return PeerId(base58.b58encode(_INLINED_ED25519 + public_key).decode("ascii"))


def _create(path: Path) -> None:
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster: take its key
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_privately(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the identity {path} is not a plain file; name another one")
        if status.st_mode & _FOREIGN_ACCESS:
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(
                f"the identity {path} is open to other users (mode {mode:04o}); "
                f"run: chmod 600 {path}"
            )
        return file.read(_KEY_FILE_BYTES_MAX + 1)


def _parse(path: Path, pem: bytes) -> bytes:
    problem = (
        f"the identity {path} does not hold an Ed25519 private key in PEM form; "
        "restore it from a backup, or delete it to get a new one"
    )
    if len(pem) > _KEY_FILE_BYTES_MAX:
        raise ConfigError(problem)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(problem) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(problem)
    return key.private_bytes_raw()
