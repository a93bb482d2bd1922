"""Every implementation writes and reads the golden vectors; nobody changes them unnoticed."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aimo_node.domain.ids import PeerId
from aimo_node.domain.models import Descriptor, EngineState
from aimo_node.errors import CloseCode
from aimo_node.protocol import codec, frames
from aimo_node.protocol.descriptors import read_descriptor
from aimo_node.protocol.events import LinkClosed, LinkOpened
from aimo_node.protocol.frames import FrameType, GoAway, Hello, StreamChunk
from aimo_node.protocol.handshake import Admission, mesh_id, mesh_proof
from aimo_node.protocol.relays import announce_relay, read_relay
from aimo_node.protocol.session import Session
from aimo_node.protocol.signing import (
    descriptor_bytes_to_sign,
    message_bytes_to_sign,
    relay_bytes_to_sign,
)

FOLDER = Path(__file__).parents[1] / "vectors" / "v1"
DIGESTS_SHA256 = "8a8ea944c00c1df7981ec7de8f67ea36db3a49fa7afdf86df5923905376ad173"
"""Nobody changes them by accident. Once version 1 is released it is frozen: other implementations
rely on these bytes; new cases then go into new files, a changed format is version 2."""

Case = dict[str, str]


def cases(name: str) -> list[Case]:
    """The cases of one file, by the rules of its README."""
    found: list[Case] = []
    key = ""
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            found[-1][key] += " " + line.strip()
            continue
        key, _, value = line.partition(": ")
        if key == "case":
            found.append({"file": name})
        found[-1][key] = value
    return found


def unhexed(text: str) -> bytes:
    out = b""
    for token in text.split():
        plain, _, count = token.partition("*")
        out += bytes.fromhex(plain) * int(count or 1)
    return out


def value_of(shown: Any) -> Any:
    """A value of `fields`: bytes and long texts are written down in short."""
    if isinstance(shown, list):
        return [value_of(item) for item in shown]
    if isinstance(shown, dict):
        return {key: value_of(item) for key, item in shown.items()}
    if isinstance(shown, str) and shown.startswith("hex:"):
        return unhexed(shown.removeprefix("hex:"))
    if isinstance(shown, str) and shown.startswith("text:"):
        letter, _, count = shown.removeprefix("text:").partition("*")
        return letter * int(count)
    return shown


def fields_of(case: Case, key: str = "fields") -> list[Any]:
    value = value_of(json.loads(case[key]))
    assert isinstance(value, list)
    return value


def file_of(member: FrameType) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in member.name).lstrip("_")


FRAME_CASES = [case for member in FrameType for case in cases(file_of(member))] + cases("relay")
MESSAGE_CASES = cases("message_frame")
every_frame = pytest.mark.parametrize(
    "case", FRAME_CASES, ids=lambda case: f"{case['file']}: {case['case']}"
)
every_message = pytest.mark.parametrize("case", MESSAGE_CASES, ids=lambda case: case["case"])


def test_the_vectors_are_as_they_were_released() -> None:
    listed = (FOLDER / "DIGESTS").read_text(encoding="utf-8")
    assert hashlib.sha256(listed.encode()).hexdigest() == DIGESTS_SHA256
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.txt")
    }
    assert digests == {line.split()[1]: line.split()[0] for line in listed.splitlines()}


def test_every_frame_type_has_its_vectors() -> None:
    for member in FrameType:
        found = cases(file_of(member))
        assert len(found) >= 3, member
        assert all(fields_of(case)[0] == member for case in found)
        assert any(case["check"] != "decode" for case in found)


@every_frame
def test_a_vector_is_read_as_the_frame_it_shows(case: Case) -> None:
    wire = unhexed(case["wire"])
    (read,) = codec.FrameReader().feed(wire)
    assert read == msgspec.convert(fields_of(case), frames.Frame)


@every_frame
def test_a_frame_is_written_as_its_vector_shows(case: Case) -> None:
    frame = msgspec.convert(fields_of(case), frames.Frame)
    if case["check"] == "both":
        assert codec.encode(frame) == unhexed(case["wire"])
    elif case["check"] == "short":
        assert isinstance(frame, StreamChunk)
        short = codec.TextChunk(
            frame.request_id, frame.chunk_index, frame.content_type, frame.payload
        )
        assert codec.encode(short) == unhexed(case["wire"])
    else:
        assert case["check"] == "decode"


@every_frame
def test_the_bytes_are_plain_msgpack_behind_their_length(case: Case) -> None:
    """Checked with a second implementation of msgpack, as another language would."""
    wire = unhexed(case["wire"])
    assert int.from_bytes(wire[:4], "big") == len(wire) - 4
    assert msgpack.unpackb(wire[4:], strict_map_key=False) == fields_of(case)


@pytest.mark.parametrize("case", [c for c in cases("hello") if "secret" in c])
def test_the_proof_of_a_hello_is_what_anybody_can_compute(case: Case) -> None:
    secret, sender, receiver = bytes.fromhex(case["secret"]), case["sender"], case["receiver"]
    hello = msgspec.convert(fields_of(case), frames.Frame)
    assert isinstance(hello, Hello)
    assert hello.mesh == hashlib.sha256(b"aimo-mesh-1\0" + secret).digest()[:16]
    spoken = b"aimo-hello-1\0" + sender.encode() + b"\0" + receiver.encode()
    assert hello.proof == hmac.new(secret, spoken, hashlib.sha256).digest()
    assert hello.mesh == mesh_id(secret)
    assert hello.proof == mesh_proof(secret, PeerId(sender), PeerId(receiver))
    session = Session(Admission(PeerId(receiver), secret), PeerId(sender), 0.0)
    (event,) = session.receive_data(unhexed(case["wire"]), 0.0)
    assert isinstance(event, LinkOpened)


def key_of(case: Case) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"]))


def peer_of(key: Ed25519PrivateKey) -> str:
    """A peer id: base58 of the identity multihash of the public key in its protobuf."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    number, text = int.from_bytes(bytes.fromhex("002408011220") + raw, "big"), ""
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return "1" + text  # the multihash begins with one zero byte


@pytest.mark.parametrize("case", cases("descriptor"), ids=lambda case: case["case"])
def test_a_descriptor_is_signed_over_its_exact_bytes(case: Case) -> None:
    frame = msgspec.convert(fields_of(case), frames.Frame)
    assert isinstance(frame, frames.Descriptor)
    key = key_of(case)
    assert key.sign(descriptor_bytes_to_sign(frame.body)) == frame.signature
    assert key.sign(b"aimo-descriptor-1\0" + frame.body) == frame.signature
    inner = fields_of(case, "inner")
    assert msgpack.unpackb(frame.body) == inner
    body = codec.decode_part(frame.body, frames.DescriptorBody)
    assert body == msgspec.convert(inner, frames.DescriptorBody)
    assert read_descriptor(frame).peer == peer_of(key)


@pytest.mark.parametrize("case", cases("relay"), ids=lambda case: case["case"])
def test_a_relay_is_signed_over_its_exact_bytes(case: Case) -> None:
    directory = msgspec.convert(fields_of(case), frames.Frame)
    assert isinstance(directory, frames.Directory)
    (frame,) = directory.relays
    key = key_of(case)
    assert key.sign(b"aimo-relay-1\0" + frame.body) == frame.signature
    assert relay_bytes_to_sign(frame.body) == b"aimo-relay-1\0" + frame.body
    inner = fields_of(case, "inner")
    assert msgpack.unpackb(frame.body) == inner
    relay = read_relay(frame)
    assert [relay.peer, relay.incarnation, relay.revision, list(relay.addresses)] == inner
    assert announce_relay(relay) == frame.body
    assert relay.peer == peer_of(key)


def described(name: str) -> Descriptor:
    (case,) = (one for one in cases("descriptor") if one["case"] == name)
    frame = msgspec.convert(fields_of(case), frames.Frame)
    assert isinstance(frame, frames.Descriptor)
    return read_descriptor(frame)


def test_a_descriptor_without_states_offers_models_that_run() -> None:
    """Providers that know nothing of states of their own are understood."""
    old = described("before engines had states of their own")
    assert [model.state for model in old.models] == [EngineState.RUNNING] * 2
    assert old.engines == ()


def test_a_descriptor_tells_what_runs_from_what_is_loaded_first_and_from_what_failed() -> None:
    new = described("one provider, two models, three engines")
    assert [(model.name, model.state.text) for model in new.models] == [
        ("tiny", "running"),
        ("llama3:8b", "stopped"),
    ]
    assert [(one.label, one.engine, one.state.text, one.models) for one in new.engines] == [
        ("tiny", "llama", "running", ("tiny",)),
        ("llama-2", "llama", "stopped", ("llama3:8b",)),
        ("gpu", "vllm", "error", ()),
    ]
    strange = described("largest numbers")
    assert [one.state for one in (*strange.models, *strange.engines)] == [EngineState.STARTING] * 2


@every_message
def test_a_gossip_message_is_signed_over_its_exact_bytes(case: Case) -> None:
    wire = unhexed(case["wire"])
    assert msgpack.unpackb(wire) == fields_of(case)
    message = codec.decode_part(wire, frames.MessageFrame)
    assert codec.encode_part(message) == wire
    key = key_of(case)
    assert key.sign(message_bytes_to_sign(message.body)) == message.signature
    assert key.sign(b"aimo-message-1\0" + message.body) == message.signature
    body = codec.decode_part(message.body, frames.MessageBody)
    inner = fields_of(case, "inner")
    assert msgpack.unpackb(message.body) == inner
    assert body.sender_id == peer_of(key)
    payload = fields_of(case, "payload")
    assert codec.decode(body.payload) == msgspec.convert(payload, frames.Frame)
    assert body.message_type == payload[0]


@pytest.mark.parametrize("case", cases("invalid"), ids=lambda case: case["case"])
def test_an_invalid_vector_ends_the_link_with_its_code(case: Case) -> None:
    session = Session(Admission(PeerId("receiver")), PeerId("sender"), 0.0)
    if case["state"] == "open":
        session.receive_data(codec.encode(Hello([1])), 0.0)
    while session.take_output():
        pass
    events = session.receive_data(unhexed(case["wire"]), 0.0)
    number, _, name = case["close"].partition(" ")
    code = CloseCode(int(number))
    assert code.name == name
    assert isinstance(events[-1], LinkClosed)
    assert events[-1].close_code is code
    (said,) = codec.FrameReader().feed(session.take_output())
    assert isinstance(said, GoAway)
    assert said.close_code == code
