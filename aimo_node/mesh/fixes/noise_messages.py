"""Fault: every Noise message costs two reads, a dozen coroutines and several copies.

Once the handshake is done, these two classes take over its keys. They turn bytes into bytes and
know no socket: whoever reads from the socket may open all messages of one read at once.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_LENGTH: Final = Struct("!H")
_TAG_BYTES: Final = 16
_NONCE_PREFIX: Final = b"\x00\x00\x00\x00"

PLAINTEXT_BYTES_MAX: Final = 65535 - _TAG_BYTES
"""The most that fits into one Noise message."""


class BrokenSeal(Exception):  # noqa: N818 (a fact about the message)
    """A message was tampered with, or is too short to be one."""


class MessageSealer:
    """Encrypts messages in order, with their length in front (Noise's CipherState, one way)."""

    __slots__ = ("_cipher", "_nonce")

    def __init__(self, key: bytes, nonce: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce

    def seal(self, plaintext: bytes) -> bytes:
        """Seal at most `PLAINTEXT_BYTES_MAX` bytes into one message ready for the socket."""
        nonce = self._nonce
        self._nonce = nonce + 1
        sealed = self._cipher.encrypt(_NONCE_PREFIX + nonce.to_bytes(8, "little"), plaintext, None)
        return _LENGTH.pack(len(sealed)) + sealed


class MessageOpener:
    """Cuts a byte stream into messages and decrypts them; keeps at most one incomplete message."""

    __slots__ = ("_cipher", "_nonce", "_rest")

    def __init__(self, key: bytes, nonce: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce
        self._rest = b""

    def open(self, received: bytes | memoryview) -> list[bytes]:
        """Decrypt every message that is complete now.

        Args:
            received: what came from the socket; may be reused by the caller afterwards.

        Raises:
            BrokenSeal: the connection is worthless from here on.
        """
        data: bytes | memoryview = self._rest + received if self._rest else received
        end = len(data)
        position = 0
        opened: list[bytes] = []
        while end - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, position)
            start = position + _LENGTH.size
            if end - start < length:
                break
            position = start + length
            opened.append(self._decrypt(data[start:position]))
        self._rest = bytes(data[position:]) if position < end else b""
        return opened

    def _decrypt(self, sealed: bytes | memoryview) -> bytes:
        nonce = self._nonce
        self._nonce = nonce + 1
        try:
            return self._cipher.decrypt(_NONCE_PREFIX + nonce.to_bytes(8, "little"), sealed, None)
        except (InvalidTag, ValueError) as error:
            raise BrokenSeal("a Noise message does not carry the peer's seal") from error


def take_over_ciphers(session: Any) -> tuple[MessageSealer, MessageOpener, bytes]:  # noqa: ANN401
    """The ciphers of a finished handshake, and plaintext that libp2p had already decrypted.

    Args:
        session: libp2p's SecureSession over Noise; it must not be used for reading or writing
            afterwards. (`Any` because libp2p is not typed for us.)
    """
    protocol = session.conn.noise_state.noise_protocol
    sending, receiving = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
    leftover = bytes(session._drain(None))  # noqa: SLF001 (there is no public way to get at it)
    return (
        MessageSealer(sending.k, sending.n),
        MessageOpener(receiving.k, receiving.n),
        leftover,
    )
