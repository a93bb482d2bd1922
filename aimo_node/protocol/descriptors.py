"""Descriptors and heartbeats: between what the node thinks in and what travels.

Signatures are checked elsewhere, over `Descriptor.body` as it came (`signing`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from aimo_node.domain import models as domain
from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.errors import LocalProtocolError, RemoteProtocolError
from aimo_node.protocol import codec, frames, limits

_PERMILLE: Final = 1_000
_MILLISECONDS: Final = 1_000

Known = TypeVar("Known", bound=enum.Enum)


def describe(descriptor: domain.Descriptor) -> bytes:
    """The `DescriptorBody` bytes to sign and send.

    What is offered is said in full or not at all. Only where there is no room for it, the engines
    go without the names of their models, which are for people.

    Raises:
        LocalProtocolError: it breaks a bound of the wire, or is over `DESCRIPTOR_BYTES_MAX`.
    """
    _check_counts(descriptor)
    fields = _body_of(descriptor)
    body = codec.encode_part(fields)
    if len(body) > limits.DESCRIPTOR_BYTES_MAX:
        nameless = [msgspec.structs.replace(engine, models=[]) for engine in fields.engines]
        body = codec.encode_part(msgspec.structs.replace(fields, engines=nameless))
    if len(body) > limits.DESCRIPTOR_BYTES_MAX:
        raise LocalProtocolError(
            f"the {len(fields.models)} models of this provider need a descriptor of {len(body)}"
            f" bytes, {limits.DESCRIPTOR_BYTES_MAX} are taken: serve fewer models, or give them"
            " shorter names"
        )
    try:
        _read_body(body)  # encoding checks no bounds, and others would refuse what breaks them
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"our own descriptor cannot be sent: {error}") from error
    return body


def _check_counts(descriptor: domain.Descriptor) -> None:
    counted = (
        ("models", len(descriptor.models), limits.DESCRIPTOR_MODELS_MAX),
        ("engines", len(descriptor.engines), limits.DESCRIPTOR_ENGINES_MAX),
    )
    for what, count, most in counted:
        if count > most:
            raise LocalProtocolError(
                f"a provider can offer {most} {what}, this one has {count}: serve fewer, or start"
                " another provider for the rest"
            )


def _body_of(descriptor: domain.Descriptor) -> frames.DescriptorBody:
    return frames.DescriptorBody(
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
        engines=[_engine_of(engine) for engine in descriptor.engines],
    )


def read_descriptor(frame: frames.Descriptor) -> domain.Descriptor:
    """What a Descriptor says; verify its signature against `peer` before you believe it.

    Features and endpoints nobody here knows come from newer versions and are dropped; an unknown
    state of an engine or a model counts as starting.

    Raises:
        RemoteProtocolError: malformed, over a bound, a text with control characters in it, or a
            model or an engine that appears twice.
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
        prefix_hits=_permille(load.prefix_hits),
        first_token_ms=_milliseconds(load.first_token_seconds),
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
            prefix_hits=frame.prefix_hits / _PERMILLE,
            first_token_seconds=frame.first_token_ms / _MILLISECONDS,
        ),
    )


def _permille(share: float) -> int:
    if not share > 0:  # also what is not a number
        return 0
    return round(min(share, 1.0) * _PERMILLE)


def _milliseconds(seconds: float) -> int:
    if not seconds > 0:
        return 0
    return round(min(seconds * _MILLISECONDS, frames.UNSIGNED32_MAX))


def _model_of(model: domain.ModelInfo) -> frames.Model:
    return frames.Model(
        name=model.name,
        digest=model.digest,
        context_tokens=frames.clamp_unsigned32(model.context_tokens),
        endpoints=[int(endpoint) for endpoint in model.endpoints],
        features=[str(feature) for feature in model.features],
        price_in=model.price_in,
        price_out=model.price_out,
        state=int(model.state),
    )


def _engine_of(engine: domain.EngineInfo) -> frames.Engine:
    return frames.Engine(
        label=engine.label,
        engine=engine.engine,
        state=int(engine.state),
        models=[str(name) for name in engine.models],
        requests_max=frames.clamp_unsigned32(engine.requests_max),
    )


def _read_body(data: bytes) -> domain.Descriptor:
    if len(data) > limits.DESCRIPTOR_BYTES_MAX:
        raise RemoteProtocolError(f"a descriptor of {len(data)} bytes is too large")
    body = codec.decode_part(data, frames.DescriptorBody)
    names = [model.name for model in body.models]
    if len(set(names)) != len(names):
        raise RemoteProtocolError("a descriptor names one model twice")
    labels = [engine.label for engine in body.engines]
    if len(set(labels)) != len(labels):
        raise RemoteProtocolError("a descriptor names one engine twice")
    if not body.peer_id or not all(text.isprintable() for text in _spoken(body)):
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
        engines=tuple(_engine_info(engine) for engine in body.engines),
    )


def _spoken(body: frames.DescriptorBody) -> Iterator[str]:
    """Every text of it that somebody may see on a terminal."""
    yield from (body.peer_id, body.engine, body.region, body.version, *body.addresses)
    yield from (model.name for model in body.models)
    for engine in body.engines:
        yield from (engine.label, engine.engine, *engine.models)


def _model_info(model: frames.Model) -> domain.ModelInfo:
    return domain.ModelInfo(
        name=ModelName(model.name),
        context_tokens=model.context_tokens,
        digest=model.digest,
        endpoints=_known(Endpoint, model.endpoints),
        features=_known(domain.Feature, model.features),
        price_in=model.price_in,
        price_out=model.price_out,
        state=_engine_state(model.state),
    )


def _engine_info(engine: frames.Engine) -> domain.EngineInfo:
    return domain.EngineInfo(
        label=engine.label,
        engine=engine.engine,
        state=_engine_state(engine.state),
        models=tuple(ModelName(name) for name in engine.models),
        requests_max=engine.requests_max,
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
