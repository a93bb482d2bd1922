"""The file that keeps a login: who may read it, and that it is never half there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aimo_node.errors import ConfigError
from providers.copilot import credentials
from providers.copilot.credentials import (
    CREDENTIAL_FILE,
    Credential,
    find_credential,
    load_credential,
    remove_credential,
    save_credential,
)
from providers.copilot.sites import AccountType

SECRET = "ghu_secret"
LOGIN = Credential(SECRET, AccountType.BUSINESS, created_at=1_700_000_000, client_id="Iv1.x")


def test_a_login_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / CREDENTIAL_FILE
    assert load_credential(path) is None
    save_credential(path, LOGIN)
    assert load_credential(path) == LOGIN
    other = Credential("ghu_other", domain="corp.ghe.com")
    save_credential(path, other)
    assert load_credential(path) == other
    assert other.site.api == "https://api.corp.ghe.com"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_it_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "state" / CREDENTIAL_FILE
    before = os.umask(mask)
    try:
        save_credential(path, LOGIN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not stat.S_IMODE(path.parent.stat().st_mode) & 0o077
    assert [file.name for file in path.parent.iterdir()] == [CREDENTIAL_FILE]


def test_an_interrupted_write_leaves_the_old_login_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CREDENTIAL_FILE
    save_credential(path, LOGIN)

    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(credentials.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_credential(path, Credential("ghu_new"))
    assert load_credential(path) == LOGIN
    assert [file.name for file in tmp_path.iterdir()] == [CREDENTIAL_FILE]


def test_logging_out_leaves_no_trace_not_even_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / CREDENTIAL_FILE
    save_credential(path, LOGIN)
    (tmp_path / f".{CREDENTIAL_FILE}.99999").write_text(SECRET)
    assert remove_credential(path) is True
    assert list(tmp_path.iterdir()) == []
    assert remove_credential(path) is False


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / CREDENTIAL_FILE
    save_credential(path, LOGIN)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_credential(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Whoever owns it could make this node send prompts with a login of their own."""
    path = tmp_path / CREDENTIAL_FILE
    save_credential(path, LOGIN)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="another user"):
        load_credential(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"ghu_secret"',
        b'{"github_token": ["ghu_secret"]}',
        b'{"github_token": "ghu_secret", "account_type": "ghu_secret"}',
        b'{"github_token": "ghu_secret", "format": 2}',
        b'{"github_token": ""}',
        b'{"github_token": "ghu_secret", "github_url": "http://evil.example"}',
        b"\xff" * 40,
    ],
)
def test_a_damaged_file_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CREDENTIAL_FILE
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="aimo auth copilot") as caught:
        load_credential(path)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_an_engine_finds_the_login_of_its_node(tmp_path: Path) -> None:
    folder = tmp_path / "engine" / "copilot"
    folder.mkdir(parents=True)
    assert not find_credential(folder).exists()
    save_credential(tmp_path / CREDENTIAL_FILE, LOGIN)
    assert find_credential(folder) == tmp_path / CREDENTIAL_FILE
    save_credential(folder / CREDENTIAL_FILE, LOGIN)
    assert find_credential(folder) == folder / CREDENTIAL_FILE, "the nearest wins"
    deep = folder / "further"
    deep.mkdir()
    (folder / CREDENTIAL_FILE).unlink()
    assert not find_credential(deep).exists(), "no further up than the state folder"


def test_the_token_is_in_no_repr() -> None:
    assert SECRET not in repr(LOGIN)
