"""This node's certificate and the bans it knows: the doorkeeper of a mesh with an authority."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import ALL_ROLES, BanList, Certificate, check_certificate
from aimo_node.errors import CloseCode, ConfigError, RemoteProtocolError
from aimo_node.mesh.identity import verifier
from aimo_node.protocol.certificates import (
    SIGNED_BYTES_MAX,
    only_signed,
    open_bans,
    open_certificate,
)
from aimo_node.protocol.frames import Hello
from aimo_node.protocol.handshake import common_version

CERTIFICATE_FILE: Final = "certificate"
BANS_FILE: Final = "bans"
REMEMBERED_MAX: Final = 1_024
"""Certificates of peers that were verified: a check costs 100 µs, and a peer comes back."""


class Credential:
    """What this node shows and whom it lets in. Kept in the state folder, mode 0600."""

    def __init__(
        self, mesh: bytes, peer: PeerId, roles: Role, folder: Path, *, clock_ms: Callable[[], int]
    ) -> None:
        """
        Args:
            mesh: the authority's public key.
            roles: what this node does.
            folder: where certificate and bans are kept.
            clock_ms: wall time, milliseconds since the epoch.

        Raises:
            ConfigError: a file in the folder cannot be read.
        """
        self.mesh = mesh
        self.agent = ""
        self.certificate: Certificate | None = None
        self.bans = BanList(mesh, 0)
        self.sealed_bans = b""
        self._peer = peer
        self._roles = roles
        self._folder = folder
        self._clock_ms = clock_ms
        self._verify = verifier(mesh)
        self._sealed = b""
        self._seen: OrderedDict[bytes, Certificate] = OrderedDict()
        self._restore()

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._peer

    @property
    def one_sided(self) -> bool:
        """The peer may know of a ban, or have another clock."""
        return True

    @property
    def now_ms(self) -> int:
        """This node's clock."""
        return self._clock_ms()

    def problem(self) -> str | None:
        """Why the certificate in hand does not do; None if it does."""
        if self.certificate is None:
            return "this node has no certificate"
        return check_certificate(
            self.certificate,
            peer=self._peer,
            mesh=self.mesh,
            roles=self._roles,
            now_ms=self._clock_ms(),
        )

    def install(self, sealed: bytes) -> str | None:
        """Take a new certificate into use and keep it; why it does not do, if so.

        Raises:
            ConfigError: it cannot be written to the state folder.
        """
        try:
            certificate = open_certificate(sealed, self._verify)
        except RemoteProtocolError as error:
            return str(error)
        problem = check_certificate(
            certificate,
            peer=self._peer,
            mesh=self.mesh,
            roles=self._roles,
            now_ms=self._clock_ms(),
        )
        if problem is None:
            self.certificate, self._sealed = certificate, sealed
            _write(self._folder / CERTIFICATE_FILE, sealed)
        return problem

    def learn_bans(self, sealed: bytes) -> bool:
        """Take a list of bans; whether it was news.

        Raises:
            RemoteProtocolError: the authority did not sign it.
            ConfigError: it cannot be written to the state folder.
        """
        bans = open_bans(sealed, self._verify, newer_than=self.bans.version)
        if bans is None or bans.mesh != self.mesh:
            return False
        self.bans, self.sealed_bans = bans, only_signed(sealed)
        _write(self._folder / BANS_FILE, self.sealed_bans)
        return True

    def hello_to(self, remote: PeerId) -> Hello:
        """The Hello for that peer. The proof is the certificate: Noise proves that it is ours."""
        del remote
        return Hello([1], self.mesh, self._sealed, agent=self.agent, roles=int(self._roles))

    def check(self, hello: Hello, remote: PeerId) -> int:
        """See `Doorkeeper.check`."""
        version = common_version(hello)
        if hello.mesh != self.mesh:
            raise RemoteProtocolError("the peer is in another mesh", CloseCode.WrongMesh)
        problem = self.problem_of(hello, remote)
        if problem is not None:
            raise RemoteProtocolError(problem, CloseCode.NotAdmitted)
        return version

    def rights(self, hello: Hello) -> Role:
        """The roles its certificate names."""
        return self._opened(hello.proof).roles

    def problem_of(self, hello: Hello, remote: PeerId) -> str | None:
        """Why a peer that said this Hello does not belong here now; None if it does.

        Raises:
            RemoteProtocolError: the authority did not sign its certificate.
        """
        return check_certificate(
            self._opened(hello.proof),
            peer=remote,
            mesh=self.mesh,
            roles=Role(hello.roles & int(ALL_ROLES)),
            now_ms=self._clock_ms(),
            banned=self.bans.peers,
        )

    def _opened(self, proof: bytes) -> Certificate:
        known = self._seen.get(proof)
        if known is None:
            known = self._seen[proof] = open_certificate(proof, self._verify)
            if len(self._seen) > REMEMBERED_MAX:
                self._seen.popitem(last=False)
        return known

    def _restore(self) -> None:
        """What was kept, if it is of this mesh and whole; else the authority is asked again."""
        sealed = read_kept(self._folder / CERTIFICATE_FILE)
        try:
            certificate = open_certificate(sealed, self._verify) if sealed else None
        except RemoteProtocolError:
            certificate = None
        if certificate is not None and certificate.peer == self._peer:
            self.certificate, self._sealed = certificate, sealed
        sealed = read_kept(self._folder / BANS_FILE)
        try:
            bans = open_bans(sealed, self._verify) if sealed else None
        except RemoteProtocolError:
            bans = None
        if bans is not None:
            self.bans, self.sealed_bans = bans, sealed


def read_kept(path: Path) -> bytes:
    """What was kept in a file of the state folder; empty if nothing was.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(SIGNED_BYTES_MAX + 1024)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.touch(mode=0o600)
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
