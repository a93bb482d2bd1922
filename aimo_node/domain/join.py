"""Join strings: what `--join` takes, and what a relay prints for others to join with.

`aimo:` and unpadded base64url of four check bytes followed by msgpack: `[1, [addresses], secret]`,
or `[2, [addresses], mesh, invite]` for a mesh with an authority.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

import msgspec

from aimo_node.domain.ids import PeerId, is_peer_id
from aimo_node.domain.membership import MESH_KEY_BYTES
from aimo_node.errors import ConfigError

JOIN_PREFIX: Final = "aimo:"
SECRET_BYTES: Final = 32

ADDRESSES_MAX: Final = 16
"""A relay has a handful of interfaces; more would make the string unwieldy to paste."""

ADDRESS_CHARACTERS_MAX: Final = 512
"""A circuit address through a DNS name of full length and two peer ids fits twice."""

JOIN_CHARACTERS_MAX: Final = 16_384
"""Sixteen addresses of full length in base64 fit; checked before anything is decoded."""

INVITE_BYTES_MAX: Final = 1_024
"""A signed invite has 150 bytes."""

_VERSION: Final = 1
_VERSION_AUTHORITY: Final = 2
_CHECK_BYTES: Final = 4
_CHECK_DOMAIN: Final = b"aimo join string\0"
_HINT: Final = "copy the whole string that the relay printed"


@dataclass(frozen=True, slots=True)
class JoinTarget:
    """Whom to dial first, and what proves that we belong.

    Attributes:
        addresses: multiaddrs of one or more relays, each ending in ``/p2p/PEER``.
        secret: the closed mesh's secret, or None when it comes apart or the mesh is open. Never
            shown by `repr`.
        mesh: the public key of the mesh's authority, if it has one; then there is no secret.
        invite: what the authority signed for a newcomer; empty for who is a member already.
    """

    addresses: tuple[str, ...]
    secret: bytes | None = field(default=None, repr=False)
    mesh: bytes | None = None
    invite: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Refuse what could not be written down and read back.

        Raises:
            ConfigError: too many addresses or none, a bad address, a secret of the wrong length.
        """
        if not self.addresses:
            raise ConfigError("a join string needs at least one address")
        if len(self.addresses) > ADDRESSES_MAX:
            raise ConfigError(f"a join string holds at most {ADDRESSES_MAX} addresses")
        for address in self.addresses:
            peer_of_address(address)
        if self.secret is not None and len(self.secret) != SECRET_BYTES:
            raise ConfigError(f"a mesh secret has {SECRET_BYTES} bytes, not {len(self.secret)}")
        if self.mesh is not None and (len(self.mesh) != MESH_KEY_BYTES or self.secret is not None):
            raise ConfigError("a mesh with an authority has its key of 32 bytes and no secret")
        if len(self.invite) > (INVITE_BYTES_MAX if self.mesh is not None else 0):
            raise ConfigError("that is no invite")


def peer_of_address(address: str) -> PeerId:
    """The peer that a multiaddr ending in ``/p2p/PEER`` leads to.

    Raises:
        ConfigError: it does not look like a multiaddr, or names no peer at its end.
    """
    example = "expected something like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…"
    if len(address) > ADDRESS_CHARACTERS_MAX:
        raise ConfigError(f"an address has more than {ADDRESS_CHARACTERS_MAX} characters")
    if not address.startswith("/") or not address.isprintable() or " " in address:
        raise ConfigError(f"{address!r} is not a multiaddr: {example}")
    head, separator, peer = address.rpartition("/p2p/")
    if not separator or not is_peer_id(peer):
        raise ConfigError(f"{address!r} does not end in /p2p/ and a peer id: {example}")
    if head.count("/") < 2:
        raise ConfigError(f"{address!r} says whom to reach, but not where: {example}")
    return PeerId(peer)


def parse_join(text: str) -> JoinTarget:
    """Read a join string, or a single multiaddr ending in ``/p2p/PEER``.

    White space anywhere is ignored: terminals and mail programs wrap long strings.

    Raises:
        ConfigError: it is neither, it is damaged or cut off, or of a version not known here. The
            message never repeats a join string, since that carries the mesh secret.
    """
    if len(text) > JOIN_CHARACTERS_MAX:
        raise ConfigError(f"a join string has at most {JOIN_CHARACTERS_MAX} characters")
    compact = "".join(text.split())
    if compact.startswith(JOIN_PREFIX):
        return _decode(compact.removeprefix(JOIN_PREFIX))
    if compact.startswith("/"):
        return JoinTarget((compact,))
    raise ConfigError(
        "a node is joined by a string that starts with 'aimo:' (a relay prints it), by @FILE that"
        " holds one, or by a multiaddr that starts with '/'"
    )


def format_join(target: JoinTarget) -> str:
    """The string another node's ``--join`` takes; it carries the secret or an invite, so treat it
    as one."""
    document = [_VERSION, target.addresses, target.secret]
    if target.mesh is not None:
        document = [_VERSION_AUTHORITY, target.addresses, target.mesh, target.invite]
    packed = msgspec.msgpack.encode(document)
    encoded = base64.urlsafe_b64encode(_check(packed) + packed)
    return JOIN_PREFIX + encoded.decode("ascii").rstrip("=")


def _check(packed: bytes) -> bytes:
    return hashlib.sha256(_CHECK_DOMAIN + packed).digest()[:_CHECK_BYTES]


def _decode(encoded: str) -> JoinTarget:
    padded = encoded + "=" * (-len(encoded) % 4)
    try:
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ConfigError(f"the join string is damaged: {_HINT}") from error
    check, packed = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    if not packed or check != _check(packed):
        raise ConfigError(f"the join string is cut off or mistyped: {_HINT}")
    # The check bytes matched, so from here on it is what some version of aimo wrote.
    try:
        document = msgspec.msgpack.decode(packed, type=list[msgspec.Raw])
        version = msgspec.msgpack.decode(document[0], type=int)
        if version not in {_VERSION, _VERSION_AUTHORITY}:
            raise ConfigError(
                f"the join string is of version {version}, this aimo reads versions {_VERSION} and"
                f" {_VERSION_AUTHORITY}: bring both to the same release"
            )
        addresses = msgspec.msgpack.decode(document[1], type=tuple[str, ...])
        secret, mesh, invite = None, None, b""
        if version == _VERSION:
            secret = msgspec.msgpack.decode(document[2], type=bytes | None)
        else:
            mesh = msgspec.msgpack.decode(document[2], type=bytes)
            invite = msgspec.msgpack.decode(document[3], type=bytes)
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(f"the join string is not understood: {_HINT}") from error
    return JoinTarget(addresses, secret, mesh, invite)
