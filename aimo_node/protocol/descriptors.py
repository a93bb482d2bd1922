"""Descriptors and heartbeats: between what the node thinks in and what travels.

Signatures are checked elsewhere, over `Descriptor.body` as it came (`signing`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, TypeVar

from aimo_node.domain import models as domain
from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.errors import LocalProtocolError, RemoteProtocolError
from aimo_node.protocol import codec, frames, limits

_PERMILLE: Final = 1_000

Known = TypeVar("Known", bound=enum.Enum)


def describe(descriptor: domain.Descriptor) -> bytes:
    """The `DescriptorBody` bytes to sign and send.

    Raises:
        LocalProtocolError: it breaks a bound of the wire, or is over `DESCRIPTOR_BYTES_MAX`.
    """
    body = codec.encode_part(
        frames.DescriptorBody(
            peer_id=descriptor.peer,
            incarnation=descriptor.incarnation,
            models=[_model_of(model) for model in descriptor.models],
            addresses=list(descriptor.addresses),
            engine=descriptor.engine,
            engine_state=int(descriptor.engine_state),
            requests_max=frames.clamp_unsigned32(descriptor.requests_max),
            region=descriptor.region,
            version=descriptor.version,
            sealing_key=descriptor.sealing_key,
            revision=descriptor.revision,
        )
    )
    try:
        _read_body(body)  # encoding checks no bounds, and others would refuse what breaks them
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"our own descriptor cannot be sent: {error}") from error
    return body


def read_descriptor(frame: frames.Descriptor) -> domain.Descriptor:
    """What a Descriptor says; verify its signature against `peer` before you believe it.

    Features and endpoints nobody here knows come from newer versions and are dropped; an unknown
    engine state counts as starting.

    Raises:
        RemoteProtocolError: malformed, over a bound, a text with control characters in it, or a
            model that appears twice.
    """
    return _read_body(frame.body)


def heartbeat_of(status: domain.Status) -> frames.Heartbeat:
    """The Heartbeat that carries `status`; shares and counts outside their range are clamped."""
    load = status.load
    return frames.Heartbeat(
        node_id=status.peer,
        incarnation=status.incarnation,
        seq=status.seq,
        status=int(status.health),
        load=_permille(load.load),
        running=frames.clamp_unsigned32(load.running),
        waiting=frames.clamp_unsigned32(load.waiting),
        kv_used=_permille(load.kv_used),
    )


def status_of(frame: frames.Heartbeat) -> domain.Status:
    """What a Heartbeat says."""
    return domain.Status(
        peer=PeerId(frame.node_id),
        incarnation=frame.incarnation,
        seq=frame.seq,
        health=domain.Health(frame.status),
        load=domain.Load(
            load=frame.load / _PERMILLE,
            running=frame.running,
            waiting=frame.waiting,
            kv_used=frame.kv_used / _PERMILLE,
        ),
    )


def _permille(share: float) -> int:
    if not share > 0:  # also what is not a number
        return 0
    return round(min(share, 1.0) * _PERMILLE)


def _model_of(model: domain.ModelInfo) -> frames.Model:
    return frames.Model(
        name=model.name,
        digest=model.digest,
        context_tokens=frames.clamp_unsigned32(model.context_tokens),
        endpoints=[int(endpoint) for endpoint in model.endpoints],
        features=[str(feature) for feature in model.features],
        price_in=model.price_in,
        price_out=model.price_out,
    )


def _read_body(data: bytes) -> domain.Descriptor:
    if len(data) > limits.DESCRIPTOR_BYTES_MAX:
        raise RemoteProtocolError(f"a descriptor of {len(data)} bytes is too large")
    body = codec.decode_part(data, frames.DescriptorBody)
    names = [model.name for model in body.models]
    if len(set(names)) != len(names):
        raise RemoteProtocolError("a descriptor names one model twice")
    spoken = (body.peer_id, body.engine, body.region, body.version, *names, *body.addresses)
    if not body.peer_id or not all(text.isprintable() for text in spoken):
        raise RemoteProtocolError("a descriptor has no peer id, or control characters in a text")
    return domain.Descriptor(
        peer=PeerId(body.peer_id),
        incarnation=body.incarnation,
        models=tuple(_model_info(model) for model in body.models),
        addresses=tuple(body.addresses),
        engine=body.engine,
        engine_state=_engine_state(body.engine_state),
        requests_max=body.requests_max,
        region=body.region,
        version=body.version,
        sealing_key=body.sealing_key,
        revision=body.revision,
    )


def _model_info(model: frames.Model) -> domain.ModelInfo:
    return domain.ModelInfo(
        name=ModelName(model.name),
        context_tokens=model.context_tokens,
        digest=model.digest,
        endpoints=_known(Endpoint, model.endpoints),
        features=_known(domain.Feature, model.features),
        price_in=model.price_in,
        price_out=model.price_out,
    )


def _known(kind: type[Known], values: Iterable[int | str]) -> tuple[Known, ...]:
    """The members of `kind` among `values`, in their order."""
    members = {member.value: member for member in kind}
    return tuple(members[value] for value in values if value in members)


def _engine_state(number: int) -> domain.EngineState:
    try:
        return domain.EngineState(number)
    except ValueError:
        return domain.EngineState.STARTING
