"""Descriptors and heartbeats travel unchanged; newer peers are understood as far as possible."""

from __future__ import annotations

import math

import pytest

from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Feature,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.errors import LocalProtocolError, RemoteProtocolError
from aimo_node.protocol import codec, frames, limits
from aimo_node.protocol.descriptors import describe, heartbeat_of, read_descriptor, status_of
from aimo_node.protocol.signing import (
    DESCRIPTOR_TAG,
    MESSAGE_TAG,
    descriptor_bytes_to_sign,
    message_bytes_to_sign,
)

PEER = PeerId("12D3KooWGfUt8uaYgvTBGTWbsKpEVfmc4yA2gXTYYM6JFtpsfWpQ")
FULL = Descriptor(
    peer=PEER,
    incarnation=1_753_000_000_000,
    models=(
        ModelInfo(
            name=ModelName("llama3:8b"),
            context_tokens=8_192,
            digest=b"\x11" * 32,
            endpoints=(Endpoint.CHAT, Endpoint.COMPLETIONS),
            features=(Feature.TOOLS, Feature.LOGPROBS),
            price_in=150_000,
            price_out=600_000,
        ),
        ModelInfo(name=ModelName("tiny"), state=EngineState.INSTALLED),
    ),
    addresses=("/ip4/192.0.2.1/tcp/4001",),
    engine="llama",
    engine_state=EngineState.RUNNING,
    requests_max=64,
    region="eu-central",
    version="0.1.0",
    sealing_key=b"\x22" * 32,
    revision=3,
    engines=(
        EngineInfo("llama", "llama", EngineState.RUNNING, (ModelName("llama3:8b"),), 60),
        EngineInfo("llama-2", "llama", EngineState.INSTALLED, (ModelName("tiny"),), 4),
        EngineInfo("gpu", "vllm", EngineState.ERROR),
    ),
)


def named(number: int) -> ModelName:
    """A name as long as names may be."""
    return ModelName(f"{number:0{limits.NAME_CHARS_MAX}d}")


def signed(body: bytes) -> frames.Descriptor:
    return frames.Descriptor(body, bytes(limits.SIGNATURE_BYTES))


def body_of(**changes: object) -> frames.Descriptor:
    fields: dict[str, object] = {
        "peer_id": PEER,
        "incarnation": 1,
        "models": [frames.Model("tiny", endpoints=[1])],
        "addresses": [],
    }
    return signed(codec.encode_part(frames.DescriptorBody(**(fields | changes))))  # type: ignore[arg-type]


def test_a_descriptor_travels_unchanged() -> None:
    assert read_descriptor(signed(describe(FULL))) == FULL


def test_the_smallest_descriptor_travels_unchanged() -> None:
    empty = Descriptor(peer=PEER, incarnation=0, models=())
    assert read_descriptor(signed(describe(empty))) == empty


def test_endpoints_and_features_of_newer_versions_are_dropped() -> None:
    model = frames.Model("tiny", endpoints=[1, 900, 3], features=["telepathy", "tools"])
    (info,) = read_descriptor(body_of(models=[model])).models
    assert info.endpoints == (Endpoint.CHAT, Endpoint.EMBEDDINGS)
    assert info.features == (Feature.TOOLS,)


def test_a_state_nobody_knows_counts_as_starting() -> None:
    """Not as running: nothing says that it answers."""
    read = read_descriptor(
        body_of(
            engine_state=77,
            models=[frames.Model("tiny", state=78)],
            engines=[frames.Engine("llama", "llama", 79)],
        )
    )
    states = [read.engine_state, read.models[0].state, read.engines[0].state]
    assert states == [EngineState.STARTING] * 3


def test_a_model_that_says_no_state_runs() -> None:
    (info,) = read_descriptor(body_of(models=[["tiny"]])).models
    assert info.state is EngineState.RUNNING


@pytest.mark.parametrize(
    "frame",
    [
        signed(b""),
        signed(b"\xc1"),
        signed(b"\x00" * (limits.DESCRIPTOR_BYTES_MAX + 1)),
        body_of(peer_id=""),
        body_of(models=[frames.Model("tiny"), frames.Model("tiny")]),
        body_of(models=[frames.Model("ti\r\nny")]),
        body_of(models=[frames.Model("")]),
        body_of(models=[frames.Model(f"m{n}") for n in range(limits.DESCRIPTOR_MODELS_MAX + 1)]),
        body_of(addresses=["/ip4/192.0.2.1/tcp/1"] * (limits.DESCRIPTOR_ADDRESSES_MAX + 1)),
        body_of(region="\x1b[2J"),
        body_of(engines=[frames.Engine(f"e{n}", "echo", 2) for n in range(17)]),
        body_of(engines=[frames.Engine("e", "echo", 2), frames.Engine("e", "llama", 2)]),
        body_of(engines=[frames.Engine("", "echo", 2)]),
        body_of(engines=[frames.Engine("e\n", "echo", 2)]),
        body_of(engines=[frames.Engine("e", "\x1b[2J", 2)]),
        body_of(engines=[frames.Engine("e", "echo", 2, ["ti\r\nny"])]),
        body_of(engines=[frames.Engine("e", "echo", 2, ["m"] * 65)]),
        body_of(engines=[frames.Engine("e", "echo", 256)]),
        body_of(incarnation=-1),
    ],
)
def test_a_descriptor_that_breaks_a_bound_is_refused(frame: frames.Descriptor) -> None:
    with pytest.raises(RemoteProtocolError):
        read_descriptor(frame)


@pytest.mark.parametrize(
    "descriptor",
    [
        Descriptor(PEER, 1, tuple(ModelInfo(ModelName(f"{n:0250d}")) for n in range(65))),
        Descriptor(PEER, 1, tuple(ModelInfo(ModelName(f"{n:0256d}")) for n in range(64))),
        Descriptor(PEER, 1, (ModelInfo(ModelName("a\nb")),)),
        Descriptor(PEER, 1, (), engine="x" * 65),
        Descriptor(PEER, 1, (), engines=(EngineInfo("x" * 65, "echo", EngineState.RUNNING),)),
    ],
)
def test_a_descriptor_nobody_would_take_is_not_made(descriptor: Descriptor) -> None:
    """Found at home, with a reason, instead of by every peer."""
    with pytest.raises(LocalProtocolError):
        describe(descriptor)


def test_a_provider_of_too_much_is_told_how_much_it_is() -> None:
    many = Descriptor(PEER, 1, tuple(ModelInfo(ModelName(f"m{n}")) for n in range(65)))
    with pytest.raises(LocalProtocolError, match="can offer 64 models, this one has 65"):
        describe(many)
    engines = tuple(EngineInfo(f"e{n}", "echo", EngineState.RUNNING) for n in range(17))
    with pytest.raises(LocalProtocolError, match="can offer 16 engines, this one has 17"):
        describe(Descriptor(PEER, 1, (), engines=engines))
    long_names = Descriptor(PEER, 1, tuple(ModelInfo(named(n)) for n in range(64)))
    with pytest.raises(
        LocalProtocolError, match=r"64 models of this provider need .* shorter names"
    ):
        describe(long_names)


def test_where_room_is_short_engines_go_without_names_and_every_model_is_still_offered() -> None:
    names = tuple(named(n) for n in range(40))
    long = Descriptor(
        PEER,
        1,
        tuple(ModelInfo(name, state=EngineState.STOPPED) for name in names),
        engines=(EngineInfo("llama", "llama", EngineState.STOPPED, names, 4),),
    )
    read = read_descriptor(signed(describe(long)))
    assert read.models == long.models
    assert read.engines == (EngineInfo("llama", "llama", EngineState.STOPPED, (), 4),)


def test_a_heartbeat_travels_to_a_thousandth() -> None:
    status = Status(PEER, 7, 8, Health.DEGRADED, Load(0.25, 3, 4, 0.999, 0.415, 0.187))
    assert status_of(heartbeat_of(status)) == status


def test_a_heartbeat_clamps_what_does_not_fit() -> None:
    status = Status(PEER, 7, 8, Health.HEALTHY, Load(math.nan, -1, 2**40, 3.5, -0.5, math.inf))
    load = status_of(heartbeat_of(status)).load
    assert load == Load(0.0, 0, 2**32 - 1, 1.0, 0.0, (2**32 - 1) / 1000)
    unknown = Status(
        PEER, 7, 8, Health.HEALTHY, Load(prefix_hits=1.5, first_token_seconds=math.nan)
    )
    assert status_of(heartbeat_of(unknown)).load == Load(prefix_hits=1.0)


def test_the_largest_heartbeat_stays_under_its_bound() -> None:
    largest = heartbeat_of(
        Status(
            PeerId("x" * limits.PEER_ID_CHARS_MAX),
            2**63 - 1,
            2**32 - 1,
            Health.OFFLINE,
            Load(1.0, 2**32 - 1, 2**32 - 1, 1.0, 1.0, 2**32),
        )
    )
    assert (largest.prefix_hits, largest.first_token_ms) == (1_000, 2**32 - 1)
    assert len(codec.encode(largest)) <= limits.HEARTBEAT_BYTES_MAX


def test_signatures_cover_a_domain_tag_and_the_exact_bytes() -> None:
    assert descriptor_bytes_to_sign(b"body") == b"aimo-descriptor-1\0body"
    assert message_bytes_to_sign(b"body") == b"aimo-message-1\0body"
    assert DESCRIPTOR_TAG != MESSAGE_TAG
