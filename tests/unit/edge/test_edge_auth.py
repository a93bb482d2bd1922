"""The client keys file and who a key belongs to."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from aimo_node.edge.auth import KEYS_MAX, ClientKeys, read_client_keys
from aimo_node.errors import AuthenticationFailed, ConfigError

KEY = "sk-0123456789abcdef"
OTHER = "sk-fedcba9876543210"


def write_keys(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_keys_are_read_past_comments_and_blank_lines(tmp_path):
    file = write_keys(tmp_path, f"# for the app\n{KEY}\n\n  {OTHER}  \r\n")
    digests = {hashlib.sha256(key.encode()).digest() for key in (KEY, OTHER)}
    assert read_client_keys(file) == digests


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(ConfigError, match="chmod 600"):
        read_client_keys(write_keys(tmp_path, KEY, mode))


def test_a_credential_of_systemd_may_look_open_to_its_group(tmp_path, monkeypatch):
    """Its access list shows as 0440; nobody else gets into that folder."""
    file = write_keys(tmp_path, KEY, 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert len(read_client_keys(file)) == 1
    file.chmod(0o444)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_client_keys(file)


@pytest.mark.parametrize(
    "line", ["short", "has space in the middle of it", "x" * 257, "schlüssel-0123456789"]
)
def test_line_that_is_no_key_is_named_by_number_and_not_shown(tmp_path, line):
    with pytest.raises(ConfigError, match="line 2 ") as caught:
        read_client_keys(write_keys(tmp_path, f"{KEY}\n{line}\n"))
    assert line not in str(caught.value)


def test_file_without_keys_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no key"):
        read_client_keys(write_keys(tmp_path, "# nothing\n"))


def test_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_client_keys(tmp_path / "absent")


def test_more_keys_than_can_be_compared_are_refused(tmp_path):
    lines = "\n".join(f"sk-{number:020d}" for number in range(KEYS_MAX + 1))
    with pytest.raises(ConfigError, match="more than"):
        read_client_keys(write_keys(tmp_path, lines))


def keys_of(*keys: str) -> ClientKeys:
    return ClientKeys(frozenset(hashlib.sha256(key.encode()).digest() for key in keys))


def test_each_key_has_a_name_that_stays_and_does_not_show_its_digest():
    name = keys_of(KEY, OTHER).consumer(KEY.encode())
    assert re.fullmatch(r"[0-9a-f]{16}", name)
    assert name == keys_of(KEY).consumer(KEY.encode())
    assert name != keys_of(KEY, OTHER).consumer(OTHER.encode())
    assert name not in hashlib.sha256(KEY.encode()).hexdigest()


@pytest.mark.parametrize("key", [None, b"", b"sk-wrong", KEY.encode() + b"x"])
def test_wrong_or_missing_key_is_refused(key):
    with pytest.raises(AuthenticationFailed):
        keys_of(KEY).consumer(key)


def test_without_keys_everybody_is_nameless():
    assert ClientKeys(frozenset()).consumer(None) == ""
