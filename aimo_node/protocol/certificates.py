"""Certificates, invites and lists of bans as bytes: a body, and the authority's signature over it.

Signing and verifying are handed in: keys stay with whoever has them. What is read here was signed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import (
    ALL_ROLES,
    BANS_MAX,
    INVITE_ID_BYTES,
    INVITE_USES_MAX,
    MESH_KEY_BYTES,
    BanList,
    Certificate,
    Invite,
)
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits
from aimo_node.protocol.frames import PeerIdField, Signature, Unsigned16, Unsigned63
from aimo_node.protocol.signing import (
    bans_bytes_to_sign,
    certificate_bytes_to_sign,
    invite_bytes_to_sign,
)

Sign: TypeAlias = Callable[[bytes], bytes]
"""The authority's signature over these bytes."""
Verify: TypeAlias = Callable[[bytes, bytes], bool]
"""Called with message and signature; true when the signature is the authority's."""

SIGNED_BYTES_MAX: Final = 65_536
"""The longest, a full list of bans, has 55,000."""

_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

MeshKey = Annotated[bytes, Meta(min_length=MESH_KEY_BYTES, max_length=MESH_KEY_BYTES)]


class Signed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A body as the exact bytes the authority signed."""

    body: Annotated[bytes, Meta(max_length=SIGNED_BYTES_MAX)]
    signature: Signature


class CertificateBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a certificate says."""

    mesh: MeshKey
    peer_id: PeerIdField
    roles: Unsigned16
    serial: Unsigned63
    issued_ms: Unsigned63
    expires_ms: Unsigned63


class InviteBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an invite says."""

    mesh: MeshKey
    id: Annotated[bytes, Meta(min_length=INVITE_ID_BYTES, max_length=INVITE_ID_BYTES)]
    roles: Unsigned16
    expires_ms: Unsigned63
    uses: Annotated[int, Meta(ge=1, le=INVITE_USES_MAX)]


class BansBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a list of bans says."""

    mesh: MeshKey
    version: Unsigned63
    peers: Annotated[list[PeerIdField], Meta(max_length=BANS_MAX)]


_Body = TypeVar("_Body", CertificateBody, InviteBody, BansBody)


def seal_certificate(certificate: Certificate, sign: Sign) -> bytes:
    """The bytes a member shows: the proof in its Hello."""
    body = msgspec.msgpack.encode(
        CertificateBody(
            certificate.mesh,
            certificate.peer,
            int(certificate.roles),
            certificate.serial,
            certificate.issued_ms,
            certificate.expires_ms,
        )
    )
    return _sealed(body, sign(certificate_bytes_to_sign(body)))


def open_certificate(data: bytes, verify: Verify) -> Certificate:
    """What a certificate says.

    Raises:
        RemoteProtocolError: malformed, or the authority did not sign it; code NotAdmitted.
    """
    if len(data) > limits.PROOF_BYTES_MAX:
        raise RemoteProtocolError("the certificate is too long", CloseCode.NotAdmitted)
    body = _opened(data, CertificateBody, certificate_bytes_to_sign, verify)
    roles = Role(body.roles & int(ALL_ROLES))
    peer = PeerId(body.peer_id)
    return Certificate(body.mesh, peer, roles, body.serial, body.issued_ms, body.expires_ms)


def seal_invite(invite: Invite, sign: Sign) -> bytes:
    """The bytes that a join string carries."""
    body = msgspec.msgpack.encode(
        InviteBody(invite.mesh, invite.id, int(invite.roles), invite.expires_ms, invite.uses)
    )
    return _sealed(body, sign(invite_bytes_to_sign(body)))


def open_invite(data: bytes, verify: Verify) -> Invite:
    """What an invite says.

    Raises:
        RemoteProtocolError: malformed, or the authority did not sign it.
    """
    body = _opened(data, InviteBody, invite_bytes_to_sign, verify)
    return Invite(body.mesh, body.id, Role(body.roles & int(ALL_ROLES)), body.expires_ms, body.uses)


def seal_bans(bans: BanList, sign: Sign) -> bytes:
    """The bytes that members hand on."""
    peers: list[str] = sorted(bans.peers)
    body = msgspec.msgpack.encode(BansBody(bans.mesh, bans.version, peers))
    return _sealed(body, sign(bans_bytes_to_sign(body)))


def open_bans(data: bytes, verify: Verify, *, newer_than: int = -1) -> BanList | None:
    """What a list of bans says; None if it is not newer, which costs no signature.

    Raises:
        RemoteProtocolError: malformed, or the authority did not sign it.
    """
    if _read(_read(data, Signed).body, BansBody).version <= newer_than:
        return None
    body = _opened(data, BansBody, bans_bytes_to_sign, verify)
    return BanList(body.mesh, body.version, frozenset(map(PeerId, body.peers)))


def only_signed(data: bytes) -> bytes:
    """What was sealed, without what stands behind it, which a later version may know.

    Raises:
        RemoteProtocolError: malformed.
    """
    signed = _read(data, Signed)
    return _sealed(signed.body, signed.signature)


def _sealed(body: bytes, signature: bytes) -> bytes:
    return msgspec.msgpack.encode(Signed(body, signature))


def _opened(
    data: bytes, kind: type[_Body], to_sign: Callable[[bytes], bytes], verify: Verify
) -> _Body:
    signed = _read(data, Signed)
    if not verify(to_sign(signed.body), signed.signature):
        message = f"the authority of the mesh did not sign this {kind.__name__}"
        raise RemoteProtocolError(message, CloseCode.NotAdmitted)
    return _read(signed.body, kind)


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def _read(data: bytes, kind: type[_Struct]) -> _Struct:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except _ERRORS as error:
        message = f"malformed {kind.__name__}: {error}"
        raise RemoteProtocolError(message, CloseCode.NotAdmitted) from error
