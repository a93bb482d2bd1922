"""Certificates, invites and bans as bytes: the golden vectors, and what damaged ones do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import BANS_MAX, BanList, Certificate, Invite
from aimo_node.errors import CloseCode, RemoteProtocolError
from aimo_node.mesh.identity import KeyPair, sign, verifier
from aimo_node.protocol import certificates, limits, members
from aimo_node.protocol.certificates import (
    open_bans,
    open_certificate,
    open_invite,
    seal_bans,
    seal_certificate,
    seal_invite,
)

FILE = Path(__file__).parents[2] / "vectors" / "v1" / "membership.txt"
KEY = KeyPair.from_seed(bytes(range(32)))
OTHER_KEY = KeyPair.from_seed(bytes(32))
SIGN, VERIFY = partial(sign, KEY), verifier(KEY.public_key)
PEER = PeerId("12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB")
times = st.integers(0, 2**63 - 1)
sealed_certificates = st.builds(
    lambda roles, serial, issued, ends: Certificate(
        KEY.public_key, PEER, Role(roles), serial, issued, ends
    ),
    st.integers(0, 7),
    times,
    times,
    times,
)


def cases() -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    key = ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            found[-1][key] += line.strip()
            continue
        key, _, value = line.partition(": ")
        if key == "case":
            found.append({})
        found[-1][key] = value
    return found


def values(shown: Any) -> Any:
    if isinstance(shown, list):
        return [values(one) for one in shown]
    if isinstance(shown, str) and shown.startswith("hex:"):
        return bytes.fromhex(shown.removeprefix("hex:"))
    return shown


OPEN: dict[str, Callable[..., Any]] = {
    "certificate": open_certificate,
    "invite": open_invite,
    "bans": open_bans,
}
SEAL: dict[str, Callable[..., bytes]] = {
    "certificate": seal_certificate,
    "invite": seal_invite,
    "bans": seal_bans,
}
every_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case["case"])


@every_case
def test_a_vector_is_read_and_written_as_it_shows(case: dict[str, str]) -> None:
    """Checked with other implementations of msgpack and Ed25519, as another language would."""
    wire, kind = bytes.fromhex(case["wire"]), case["kind"]
    body, signature = values(json.loads(case["fields"]))
    inner = values(json.loads(case["inner"]))
    assert msgpack.unpackb(wire) == [body, signature]
    assert msgpack.unpackb(body) == inner
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"]))
    assert inner[0] == key.public_key().public_bytes_raw()
    assert key.sign(f"aimo-{kind}-1".encode() + b"\0" + body) == signature
    value = OPEN[kind](wire, verifier(inner[0]))
    assert value.mesh == inner[0]
    if case["check"] == "both":
        assert SEAL[kind](value, key.sign) == wire


def test_every_kind_has_its_vectors() -> None:
    assert {case["kind"] for case in cases()} == set(OPEN)


@given(sealed_certificates)
def test_a_certificate_comes_back_as_it_was(certificate: Certificate) -> None:
    sealed = seal_certificate(certificate, SIGN)
    assert len(sealed) <= limits.PROOF_BYTES_MAX
    assert open_certificate(sealed, VERIFY) == certificate


@given(sealed_certificates, st.data())
def test_one_flipped_bit_anywhere_is_refused(certificate: Certificate, data: st.DataObject) -> None:
    sealed = bytearray(seal_certificate(certificate, SIGN))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RemoteProtocolError) as refused:
        open_certificate(bytes(sealed), VERIFY)
    assert refused.value.close_code is CloseCode.NotAdmitted


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for read in OPEN.values():
        with pytest.raises(RemoteProtocolError):
            read(data, VERIFY)
    for decode in (members.decode_question, members.decode_answer):
        with pytest.raises(RemoteProtocolError):
            decode(b"\0\0\0\0" + data[:1] + b"\xc1" + data)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    """Else an invite could be shown where a certificate is wanted."""
    body = msgpack.packb([KEY.public_key, PEER, 7, 1, 0, 10])
    for tag in (b"aimo-invite-1\0", b"aimo-bans-1\0", b"aimo-descriptor-1\0", b""):
        forged = certificates._sealed(body, SIGN(tag + body))
        with pytest.raises(RemoteProtocolError):
            open_certificate(forged, VERIFY)


def test_another_key_is_no_authority() -> None:
    certificate = Certificate(KEY.public_key, PEER, Role.EDGE, 1, 0, 1)
    forged = seal_certificate(certificate, partial(sign, OTHER_KEY))
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        open_certificate(forged, VERIFY)


def test_an_invite_comes_back_as_it_was_and_hides_its_id() -> None:
    invite = Invite(KEY.public_key, bytes(range(16)), Role.PROVIDER, 99, 3)
    assert open_invite(seal_invite(invite, SIGN), VERIFY) == invite
    assert bytes(range(16)).hex() not in repr(invite)
    assert repr(bytes(range(16))) not in repr(invite)


def test_an_older_list_of_bans_costs_no_signature() -> None:
    bans = BanList(KEY.public_key, 3, frozenset({PEER}))
    sealed = seal_bans(bans, SIGN)
    assert open_bans(sealed, VERIFY, newer_than=2) == bans

    def never(_message: bytes, _signature: bytes) -> bool:
        raise AssertionError

    assert open_bans(sealed, never, newer_than=3) is None


def test_the_longest_list_of_bans_fits_its_message() -> None:
    peers = frozenset(PeerId(f"12D3KooW{number:044}") for number in range(BANS_MAX))
    sealed = seal_bans(BanList(KEY.public_key, 2**62, peers), SIGN)
    message = members.encode(members.Granted(bytes(limits.PROOF_BYTES_MAX), sealed, 2**62))
    assert members.missing_bytes(message) == 0
    assert isinstance(members.decode_answer(message), members.Granted)


def test_a_message_is_measured_before_it_is_kept() -> None:
    message = members.encode(members.Renew(5))
    for length in range(len(message)):
        assert members.missing_bytes(message[:length]) > 0
    assert members.missing_bytes(message) == 0
    assert members.decode_question(message) == members.Renew(5)
    for data in (message + b"x", b"\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError):
            members.missing_bytes(data)
