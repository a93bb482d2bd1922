"""Hello: which version, which mesh, and the proof of belonging to it.

The proof of a mesh secret is HMAC-SHA256 over a domain tag and both peer ids in the order sender,
receiver. Noise has authenticated both ids, so a proof cannot be replayed by or towards anybody
else, and neither side learns the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Protocol

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import ALL_ROLES
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.protocol import limits
from aimo_node.protocol.frames import Hello

_MESH_TAG: Final = b"aimo-mesh-1\0"
_PROOF_TAG: Final = b"aimo-hello-1\0"
MESH_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32


class Doorkeeper(Protocol):
    """What this node says of itself, and whom it lets in."""

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""

    @property
    def mesh(self) -> bytes:
        """The public name of the mesh; empty for an open one."""

    @property
    def one_sided(self) -> bool:
        """Whether the peer may refuse us although we do not refuse it."""

    def hello_to(self, remote: PeerId) -> Hello:
        """The Hello for that peer."""

    def check(self, hello: Hello, remote: PeerId) -> int:
        """The version to speak with the peer that sent `hello`. Raises RemoteProtocolError."""

    def rights(self, hello: Hello) -> Role:
        """The roles that the peer whose Hello was accepted may act in."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The doorkeeper of an open mesh, and of one with a secret.

    Attributes:
        peer: our own peer id.
        secret: the mesh secret, 32 bytes; None for an open mesh.
    """

    peer: PeerId
    secret: bytes | None = None
    roles: Role = Role.NONE
    agent: str = ""
    versions: tuple[int, ...] = limits.VERSIONS_SUPPORTED

    @property
    def one_sided(self) -> bool:
        """Never: both know the same secret, or one of them does not."""
        return False

    @property
    def mesh(self) -> bytes:
        """The public name of the mesh; empty for an open one."""
        return mesh_id(self.secret)

    def __repr__(self) -> str:
        return f"Admission(peer={self.peer!r}, closed={self.secret is not None})"

    def hello_to(self, remote: PeerId) -> Hello:
        """The Hello for that peer."""
        return Hello(
            versions=list(self.versions),
            mesh=mesh_id(self.secret),
            proof=mesh_proof(self.secret, self.peer, remote),
            agent=self.agent,
            roles=int(self.roles),
        )

    def check(self, hello: Hello, remote: PeerId) -> int:
        """The version to speak with the peer that sent `hello`.

        Raises:
            RemoteProtocolError: with close code VersionMismatch, WrongMesh or NotAdmitted.
        """
        version = common_version(hello, self.versions)
        if not hmac.compare_digest(hello.mesh, mesh_id(self.secret)):
            raise RemoteProtocolError("the peer is in another mesh", CloseCode.WrongMesh)
        if not hmac.compare_digest(hello.proof, mesh_proof(self.secret, remote, self.peer)):
            raise RemoteProtocolError("the peer did not prove membership", CloseCode.NotAdmitted)
        return version

    def rights(self, hello: Hello) -> Role:
        """All: who knows the secret may act in every role."""
        del hello
        return ALL_ROLES


def common_version(hello: Hello, ours: tuple[int, ...] = limits.VERSIONS_SUPPORTED) -> int:
    """The highest version both sides speak.

    Raises:
        RemoteProtocolError: there is none; code VersionMismatch.
    """
    common = set(hello.versions) & set(ours)
    if not common:
        message = f"no common version: theirs {hello.versions}, ours {list(ours)}"
        raise RemoteProtocolError(message, CloseCode.VersionMismatch)
    return max(common)


def mesh_id(secret: bytes | None) -> bytes:
    """The public name of a closed mesh; empty for an open one."""
    return b"" if secret is None else hashlib.sha256(_MESH_TAG + secret).digest()[:MESH_ID_BYTES]


def mesh_proof(secret: bytes | None, sender: PeerId, receiver: PeerId) -> bytes:
    """What `sender` shows `receiver`; empty for an open mesh."""
    if secret is None:
        return b""
    spoken = _PROOF_TAG + sender.encode() + b"\0" + receiver.encode()
    return hmac.digest(secret, spoken, "sha256")
