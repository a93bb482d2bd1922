"""The key file and the peer ids and signatures that come from it."""

import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aimo_node.errors import ConfigError, InvalidMessageFormat
from aimo_node.mesh.fixes.library import ID, ed25519_key_pair
from aimo_node.mesh.identity import (
    KeyPair,
    load_identity,
    peer_id_of,
    public_key_from_peer_id,
    sign,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "identity.pem"


def test_a_missing_key_is_created_privately_and_kept(path: Path):
    first = load_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert load_identity(path) == first
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_folder_keeps_its_mode(tmp_path: Path):
    tmp_path.chmod(0o755)
    load_identity(tmp_path / "identity.pem")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_nodes_that_start_together_get_the_same_key(path: Path):
    found: list[KeyPair] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(load_identity(path))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({one.peer_id for one in found}) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_open_to_others_is_refused_with_the_fix(path: Path, mode: int):
    load_identity(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"run: chmod 600 {path}"):
        load_identity(path)


def rsa_pem() -> bytes:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\xff" * 100, b"x" * 1_000_000, "rsa", "cut short"]
)
def test_a_malformed_key_is_refused_and_left_alone(path: Path, content):
    load_identity(path)
    if content == "rsa":
        content = rsa_pem()
    elif content == "cut short":
        content = path.read_bytes()[:60]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold an Ed25519 private key"):
        load_identity(path)
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused(path: Path):
    path.mkdir(parents=True)
    with pytest.raises(ConfigError):
        load_identity(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="--state"):
        load_identity(tmp_path / "identity.pem")


def test_a_file_where_a_folder_should_be_is_a_configuration_error(tmp_path: Path):
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="--state"):
        load_identity(tmp_path / "state" / "identity.pem")


def test_peer_ids_are_those_of_libp2p():
    for seed in (b"a" * 32, bytes(range(32))):
        expected = ID.from_pubkey(ed25519_key_pair(seed).public_key).to_base58()
        assert peer_id_of(KeyPair.from_seed(seed)) == expected


def test_signatures_hold_for_their_message_and_their_peer_only():
    ours, theirs = KeyPair.from_seed(b"a" * 32), KeyPair.from_seed(b"b" * 32)
    signature = sign(ours, b"message")
    verify = public_key_from_peer_id(ours.peer_id)
    assert verify(b"message", signature)
    assert not verify(b"another", signature)
    assert not verify(b"message", sign(theirs, b"message"))
    assert not verify(b"message", signature[:-1])
    assert not verify(b"message", b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0OIl",
        "12D3KooW",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "16Uiu2HAmPLe7Mzm8TsYUubgCAW1aJoeFScxrLj8ppHFivPo97bUZ",
        "12D3KooWMPswz8w8NPM7HyVDxncbXvRBrAC7AUZjbj9tjD2xaCJsZZZZ",
        "é" * 50,
    ],
)
def test_other_peer_ids_are_refused(text):
    with pytest.raises(InvalidMessageFormat):
        public_key_from_peer_id(text)


def test_the_seed_does_not_show():
    pair = KeyPair.from_seed(b"s" * 32)
    assert "ssss" not in repr(pair)
    assert "SigningKey" not in repr(pair)
