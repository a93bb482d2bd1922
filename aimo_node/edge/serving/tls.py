"""TLS between the socket and the HTTP parser, sans-I/O: bytes in, bytes out.

`trio.SSLStream` passes the scheduler twice per write; a stream of tokens writes thousands of times
a second, and with the records in memory a TLS write takes the same direct way into the socket as a
plain one.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from aimo_node.errors import ConfigError

RECORDS_BYTES = 65_536
"""Plain text taken from OpenSSL at one time: four records of the largest size."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's TLS context: TLS 1.2 or later, HTTP/1.1 as the only protocol offered.

    Raises:
        ConfigError: the files cannot be read or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Compression leaks secrets by length; renegotiation lets a consumer make us compute.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key} are no certificate and its key, both in PEM and the key "
            f"without a password: {error.reason or error}"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read TLS certificate {certificate} or key {key}: {error.strerror}"
        ) from error
    return context


class TlsCodec:
    """One connection's TLS state. `ssl.SSLError` from any method means that the connection is
    unusable."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self, received: bytes) -> bool:
        """Takes what came from the consumer; says whether the handshake is done. See `pending`."""
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def pending(self) -> bytes:
        """What must go out before anything else: handshake records, alerts, key updates."""
        return self._outgoing.read()

    def seal(self, data: bytes) -> bytes:
        """Encrypts `data`."""
        written = self._tls.write(data)
        while written < len(data):  # OpenSSL takes one record at a time
            written += self._tls.write(memoryview(data)[written:])
        return self._outgoing.read()

    def open(self, received: bytes) -> tuple[bytes, bool]:
        """Decrypts what came; the flag says that the consumer closed its side."""
        self._incoming.write(received)
        pieces = []
        try:
            while piece := self._tls.read(RECORDS_BYTES):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(pieces), True

    def close_notify(self) -> bytes:
        """The record that tells the consumer that nothing was cut off."""
        with contextlib.suppress(ssl.SSLError):  # the consumer's own one is not waited for
            self._tls.unwrap()
        return self._outgoing.read()
