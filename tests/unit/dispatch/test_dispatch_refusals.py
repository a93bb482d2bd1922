"""What a consumer hears when nobody can answer: try again, or ask for something else."""

from __future__ import annotations

import pytest

from aimo_node.dispatch.dispatcher import Dispatcher
from aimo_node.dispatch.inference import InferenceRequest
from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.links import LinkFacts
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.errors import (
    CodedError,
    ModelNotFound,
    NetworkError,
    Overloaded,
    PermissionDenied,
    ProviderNotFound,
)
from aimo_node.ports.peer_network import Exchange, OutgoingRequest
from aimo_node.routing.table import RoutingTable

RELAY, PEER = PeerId("relay"), PeerId("provider")
TINY, LARGE, QWEN = ModelName("tiny"), ModelName("large"), ModelName("qwen")


class Nowhere:
    """A network that reaches nobody."""

    async def open_exchange(self, peer: PeerId, request: OutgoingRequest) -> Exchange:
        raise NetworkError("nobody is there")

    def link_facts(self, peer: PeerId) -> LinkFacts | None:
        return None


def dispatcher_of(
    *models: ModelInfo,
    engines: tuple[EngineInfo, ...] = (),
    trusted: frozenset[PeerId] | None = None,
) -> Dispatcher:
    table = RoutingTable()
    described = Descriptor(
        PEER, 1, models, engine="llama", engine_state=EngineState.RUNNING, engines=engines
    )
    table.describe(RELAY, described, 0.0)
    return Dispatcher(Nowhere(), table, trusted=trusted)


async def refusal(
    dispatcher: Dispatcher,
    model: str = "tiny",
    endpoint: Endpoint = Endpoint.CHAT,
    provider: PeerId | None = None,
) -> CodedError:
    request = InferenceRequest(endpoint, model, b"{}", True, 10.0, provider=provider)
    with pytest.raises(CodedError) as caught:
        await dispatcher.open(request)
    return caught.value


async def test_a_model_whose_engine_starts_is_worth_trying_again() -> None:
    """`no such model` would end an application that the next minute would have served."""
    starting = EngineInfo("gpu", "vllm", EngineState.STARTING, (QWEN,))
    dispatcher = dispatcher_of(ModelInfo(TINY), engines=(starting,))
    for pinned in (None, PEER):
        error = await refusal(dispatcher, "qwen", provider=pinned)
        assert isinstance(error, Overloaded)
        assert "its engine is not ready" in error.message
        assert error.retry_after_seconds


async def test_a_provider_that_is_offline_is_worth_trying_again() -> None:
    dispatcher = dispatcher_of(ModelInfo(TINY))
    dispatcher.table.report(RELAY, Status(PEER, 1, 1, Health.OFFLINE, Load()), 0.0)
    for pinned in (None, PEER):
        error = await refusal(dispatcher, provider=pinned)
        assert isinstance(error, Overloaded)
        assert "offline" in error.message


async def test_what_nobody_serves_is_not_worth_trying_again() -> None:
    dispatcher = dispatcher_of(ModelInfo(TINY))
    unknown = await refusal(dispatcher, "qwen")
    other = Descriptor(PeerId("other"), 1, (ModelInfo(LARGE),), engine_state=EngineState.RUNNING)
    dispatcher.table.describe(RELAY, other, 0.0)
    elsewhere = await refusal(dispatcher, "large", provider=PEER)
    images = await refusal(dispatcher, endpoint=Endpoint.IMAGES)
    assert all(isinstance(error, ModelNotFound) for error in (unknown, elsewhere, images))
    assert "that provider does not serve 'large'" in elsewhere.message
    assert "images" in images.message
    assert isinstance(await refusal(dispatcher, provider=PeerId("nobody")), ProviderNotFound)


async def test_a_view_shows_the_engines_and_how_busy_they_are() -> None:
    engines = (
        EngineInfo("llama", "llama", EngineState.STOPPED, (TINY,), 4),
        EngineInfo("gpu", "vllm", EngineState.ERROR, (QWEN,)),
    )
    dispatcher = dispatcher_of(ModelInfo(TINY, state=EngineState.STOPPED), engines=engines)
    load = Load(0.5, 2, 1, 0.25, 0.415, 0.187)
    dispatcher.table.report(RELAY, Status(PEER, 1, 1, Health.HEALTHY, load), 0.0)
    (view,) = dispatcher.providers()
    assert view.engines == engines
    assert [(model.name, model.state.text) for model in view.models] == [("tiny", "stopped")]
    assert (view.kv_used, view.prefix_hits, view.first_token_seconds) == (0.25, 0.415, 0.187)
    assert view.status == "healthy"


async def test_a_provider_that_is_not_trusted_is_refused_by_name() -> None:
    starting = EngineInfo("gpu", "vllm", EngineState.STARTING, (QWEN,))
    trusted = frozenset({PeerId("friend")})
    dispatcher = dispatcher_of(ModelInfo(TINY), engines=(starting,), trusted=trusted)
    for model in ("tiny", "qwen"):
        pinned = await refusal(dispatcher, model, provider=PEER)
        assert isinstance(pinned, PermissionDenied)
        assert f"does not trust the provider {PEER}" in pinned.message
        error = await refusal(dispatcher, model)
        assert isinstance(error, ModelNotFound)
        assert "no provider that this edge trusts" in error.message
    (view,) = dispatcher.providers()
    assert not view.trusted
    assert dispatcher.models() == []


async def test_a_provider_that_is_named_is_trusted() -> None:
    dispatcher = dispatcher_of(ModelInfo(TINY), trusted=frozenset({PEER}))
    error = await refusal(dispatcher)
    assert isinstance(error, NetworkError), "it was asked"
    (view,) = dispatcher.providers()
    assert view.trusted
    assert [model.name for model in dispatcher.models()] == [TINY]
