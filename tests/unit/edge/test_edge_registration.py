"""Adding endpoints to a running edge: who may, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aimo_node.dispatch.registration import NewEndpoint, RegisteredEndpoint
from aimo_node.edge.native.registration import RegistrationDesk
from aimo_node.edge.settings import EdgeSettings
from aimo_node.errors import InvalidRequest, PermissionDenied, ProviderNotFound

HERE: dict[str, Any] = {"client": ("127.0.0.1", 5)}


class Registry:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.wanted: list[NewEndpoint] = []
        self.state = "running"

    async def register(self, wanted: NewEndpoint) -> RegisteredEndpoint:
        self.wanted.append(wanted)
        return RegisteredEndpoint("openai", wanted.engine, wanted.endpoint, self.state, ("m",))

    async def remove(self, label: str) -> bool:
        return label == "openai"

    def registered(self) -> Sequence[RegisteredEndpoint]:
        return [RegisteredEndpoint("openai", "openai", one.endpoint, "x") for one in self.wanted]


async def test_an_endpoint_is_added_and_listed_without_its_key() -> None:
    registry = Registry()
    desk = RegistrationDesk(registry, EdgeSettings())
    body = {"endpoint": "http://127.0.0.1:1/v1", "api_key": "sk-hidden", "models": {"a": "b"}}
    status, answer = await desk.register(HERE, body)
    assert status == 201
    assert answer["id"] == "openai"
    assert registry.wanted[0].api_key == "sk-hidden"
    assert registry.wanted[0].models == {"a": "b"}
    assert "sk-hidden" not in repr((answer, desk.registered(HERE), registry.wanted))
    registry.state = "starting"
    assert (await desk.register(HERE, body))[0] == 202
    assert (await desk.remove(HERE, "openai"))["deleted"] is True
    with pytest.raises(ProviderNotFound, match="No endpoint 'x'"):
        await desk.remove(HERE, "x")


@pytest.mark.parametrize(
    "client",
    [
        ("192.0.2.1", 5),
        ("::2", 5),
        ("::ffff:127.0.0.1", 5),
        ("localhost.example", 5),
        ("", 5),
        None,
    ],
)
async def test_only_this_machine_may(client: object) -> None:
    desk = RegistrationDesk(Registry(), EdgeSettings())
    scope = {"client": client}
    with pytest.raises(PermissionDenied):
        await desk.register(scope, {"endpoint": "http://x/v1"})
    with pytest.raises(PermissionDenied):
        await desk.remove(scope, "openai")
    with pytest.raises(PermissionDenied):
        desk.registered(scope)


async def test_a_proxy_in_front_hides_who_asks() -> None:
    desk = RegistrationDesk(Registry(), EdgeSettings(behind_proxy=True))
    with pytest.raises(PermissionDenied):
        await desk.register(HERE, {"endpoint": "http://x/v1"})


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"x-real-ip"])
async def test_a_proxy_nobody_told_of_is_noticed(name: bytes) -> None:
    desk = RegistrationDesk(Registry(), EdgeSettings())
    scope = HERE | {"headers": [(b"host", b"localhost"), (name, b"127.0.0.1")]}
    with pytest.raises(PermissionDenied):
        await desk.register(scope, {"endpoint": "http://x/v1"})
    with pytest.raises(PermissionDenied):
        await desk.remove(scope, "openai")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "endpoint"),
        ({"endpoint": ""}, "endpoint"),
        ({"endpoint": 3}, "endpoint"),
        ({"endpoint": "http://x", "models": ["a"]}, "models"),
        ({"endpoint": "http://x", "requests_max": "3"}, "requests_max"),
    ],
)
async def test_a_wrong_body_is_refused_with_its_field(body: dict[str, Any], field: str) -> None:
    registry = Registry()
    with pytest.raises(InvalidRequest) as caught:
        await RegistrationDesk(registry, EdgeSettings()).register(HERE, body)
    assert caught.value.param == field
    assert not registry.wanted
