"""Noise messages cut from a byte stream, against a plain reading of the specification."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.mesh.fixes.noise_messages import (
    PLAINTEXT_BYTES_MAX,
    BrokenSeal,
    MessageOpener,
    MessageSealer,
)

KEY = bytes(range(32))


@given(
    st.lists(st.binary(max_size=300), max_size=8),
    st.lists(st.integers(min_value=1, max_value=700), max_size=12),
)
def test_messages_survive_any_cutting(messages, cuts):
    sealer, opener = MessageSealer(KEY, 0), MessageOpener(KEY, 0)
    stream = b"".join(map(sealer.seal, messages))
    opened = []
    for cut in cuts:
        opened += opener.open(memoryview(stream[:cut]))
        stream = stream[cut:]
    opened += opener.open(stream)
    assert opened == messages


def test_the_first_nonces_follow_the_specification():
    """32 zero bits, then the counter in little-endian: Noise, section 12.3."""
    sealer = MessageSealer(KEY, 7)
    for counter in (7, 8):
        sealed = sealer.seal(b"text")
        nonce = bytes(4) + counter.to_bytes(8, "little")
        assert sealed[2:] == ChaCha20Poly1305(KEY).encrypt(nonce, b"text", None)
        assert int.from_bytes(sealed[:2], "big") == len(sealed) - 2


def test_the_largest_message_fits():
    sealer, opener = MessageSealer(KEY, 0), MessageOpener(KEY, 0)
    assert opener.open(sealer.seal(b"m" * PLAINTEXT_BYTES_MAX)) == [b"m" * PLAINTEXT_BYTES_MAX]


@pytest.mark.parametrize("position", [0, 2, 10, -1])
def test_a_changed_byte_breaks_the_seal(position):
    sealed = bytearray(MessageSealer(KEY, 0).seal(b"x" * 300))
    sealed[position] ^= 1
    opener = MessageOpener(KEY, 0)
    with pytest.raises(BrokenSeal):
        opener.open(bytes(sealed))


def test_a_message_too_short_for_a_seal_is_refused():
    with pytest.raises(BrokenSeal):
        MessageOpener(KEY, 0).open(b"\x00\x03abc")
    with pytest.raises(BrokenSeal):
        MessageOpener(KEY, 0).open(b"\x00\x00")


def test_a_message_cannot_be_replayed():
    sealed = MessageSealer(KEY, 0).seal(b"once")
    opener = MessageOpener(KEY, 0)
    assert opener.open(sealed) == [b"once"]
    with pytest.raises(BrokenSeal):
        opener.open(sealed)
