"""What an Ed25519 signature on the wire covers: a domain tag, then the exact bytes as sent.

Pure: keys stay with whoever signs. A signature never covers a re-encoding, so a receiver verifies
the bytes it got and only then reads them.
"""

from __future__ import annotations

from typing import Final

DESCRIPTOR_TAG: Final = b"aimo-descriptor-1\0"
RELAY_TAG: Final = b"aimo-relay-1\0"
MESSAGE_TAG: Final = b"aimo-message-1\0"
CERTIFICATE_TAG: Final = b"aimo-certificate-1\0"
INVITE_TAG: Final = b"aimo-invite-1\0"
BANS_TAG: Final = b"aimo-bans-1\0"


def descriptor_bytes_to_sign(body: bytes) -> bytes:
    """What the provider signs, given the encoded `DescriptorBody`: `Descriptor.body`."""
    return DESCRIPTOR_TAG + body


def relay_bytes_to_sign(body: bytes) -> bytes:
    """What a relay signs of itself, given the encoded `RelayBody`: `Relay.body`."""
    return RELAY_TAG + body


def message_bytes_to_sign(body: bytes) -> bytes:
    """What a gossip sender signs, given the encoded `MessageBody`: `MessageFrame.body`."""
    return MESSAGE_TAG + body


def certificate_bytes_to_sign(body: bytes) -> bytes:
    """What the authority of a mesh signs, given an encoded certificate."""
    return CERTIFICATE_TAG + body


def invite_bytes_to_sign(body: bytes) -> bytes:
    """What the authority of a mesh signs, given an encoded invite."""
    return INVITE_TAG + body


def bans_bytes_to_sign(body: bytes) -> bytes:
    """What the authority of a mesh signs, given an encoded list of bans."""
    return BANS_TAG + body
