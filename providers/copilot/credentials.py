"""The file that keeps a login: mode 0600 in the state folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from aimo_node.errors import ConfigError
from providers.answers import NOT_JSON
from providers.copilot.sites import PUBLIC_DOMAIN, AccountType, Site, read_root, site_of

CREDENTIAL_FILE: Final = "copilot.json"
CREDENTIAL_BYTES_MAX: Final = 16_384
FORMAT: Final = 1

FOLDERS_UP_MAX: Final = 2
"""An engine's folder lies so far inside the state folder at most, where the login is kept."""

_FOREIGN_ACCESS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Credential:
    """One login.

    Attributes:
        github_token: GitHub's token, which never leaves for anywhere but that GitHub.
        domain: ``github.com``, or that of a GitHub Enterprise.
        github_url: one address in place of the domain's; for tests.
        created_at: seconds since the epoch.
    """

    github_token: str = field(repr=False)
    account_type: AccountType = AccountType.INDIVIDUAL
    domain: str = PUBLIC_DOMAIN
    github_url: str = ""
    client_id: str = ""
    created_at: int = 0
    format: int = FORMAT

    @property
    def site(self) -> Site:
        """Where it is good."""
        return site_of(self.account_type, self.domain, self.github_url)


def find_credential(folder: Path) -> Path:
    """Where the login is that belongs to an engine's `folder`; where it would be if there is none.

    `aimo auth copilot` keeps it in the node's state folder, and engines have folders inside that.
    """
    folders = [folder, *folder.absolute().parents[:FOLDERS_UP_MAX]]
    paths = [one / CREDENTIAL_FILE for one in folders]
    return next((path for path in paths if path.exists()), paths[0])


def load_credential(path: Path) -> Credential | None:
    """The login in `path`, None if there is none.

    Raises:
        ConfigError: it cannot be read, is not ours alone, or is damaged.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(CREDENTIAL_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the login in {path}: {error.strerror}") from error
    if found.st_uid != os.getuid():
        raise ConfigError(f"the login in {path} belongs to another user: remove it")
    if stat.S_IMODE(found.st_mode) & _FOREIGN_ACCESS:
        raise ConfigError(f"others may read the login in {path}: run chmod 600 {path}")
    try:
        credential = msgspec.json.decode(content, type=Credential)
        if credential.github_url:
            read_root(credential.github_url)
    except (*NOT_JSON, ConfigError):
        # Not chained: the decoder's message may quote what it found.
        raise ConfigError(
            f"the login in {path} is damaged: run `aimo auth copilot` again"
        ) from None
    if credential.format != FORMAT or not credential.github_token:
        raise ConfigError(f"the login in {path} is of another version: run `aimo auth copilot`")
    return credential


def save_credential(path: Path, credential: Credential) -> None:
    """Put a login in place of the one before.

    Raises:
        ConfigError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_drafts(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            file.write(msgspec.json.encode(credential))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write the login {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def remove_credential(path: Path) -> bool:
    """Forget a login, and what a killed process may have left of one; whether there was one.

    Raises:
        ConfigError: it cannot be removed.
    """
    try:
        _remove_drafts(path)
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"cannot remove the login {path}: {error.strerror}") from error
    return True


def _remove_drafts(path: Path) -> None:
    for draft in path.parent.glob(f".{path.name}.*"):
        draft.unlink(missing_ok=True)
