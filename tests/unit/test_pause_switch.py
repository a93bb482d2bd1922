"""The owner's switch: pausing survives a restart, and what it unloaded is loaded again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from aimo_node.assembly.owner_commands import OwnerCommands
from aimo_node.assembly.pause_switch import PAUSED_FILE, PauseSwitch
from aimo_node.assembly.usage_keeping import UsageKeeper
from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.quota import Quota
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import ConfigError
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FakeEngine

OWN, PEER = PeerId("own"), PeerId("peer")
NOW = 1_800_000_000.0


def service_of(*models: str) -> ProviderService:
    meter = Meter(OWN, Quota(requests_per_day=7), lambda: NOW)
    made = ProviderService(OWN, NodeMetrics().provider, meter)
    for model in models:
        made.add(EnginePlan(model, "fake", lambda model=model: FakeEngine(model)))
    return made


@asynccontextmanager
async def running(folder: Path, *models: str) -> AsyncIterator[PauseSwitch]:
    """A provider from its start to its end, with whatever is remembered in `folder`."""
    made = service_of(*models)
    switch = PauseSwitch(made, folder)
    switch.restore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await made.wait_settled()
        yield switch
        nursery.cancel_scope.cancel()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def states(switch: PauseSwitch) -> list[EngineState]:
    return [engine.state for engine in switch.service.engines]


async def until_running(switch: PauseSwitch, count: int) -> None:
    with trio.fail_after(5):
        while states(switch).count(EngineState.RUNNING) < count:
            await trio.lowlevel.checkpoint()


async def test_a_paused_provider_stays_paused_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as switch:
        assert not switch.service.paused
        await switch.pause(unload=False)
        await switch.pause(unload=False)
        assert switch.service.paused
        assert states(switch) == [EngineState.RUNNING], "only requests are refused"
    async with running(tmp_path, "a") as switch:
        assert switch.service.paused
        assert switch.since == NOW
        assert states(switch) == [EngineState.RUNNING]
        await switch.resume()
        assert switch.service.health() is Health.HEALTHY
    async with running(tmp_path, "a") as switch:
        assert not switch.service.paused
    assert files(tmp_path) == []


async def test_engines_unloaded_for_a_pause_are_loaded_when_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", "c") as switch:
        await switch.service.engines[2].unload_now()
        await switch.pause(unload=True)
        assert states(switch) == [EngineState.STOPPED] * 3
        await switch.pause(unload=False)
    async with running(tmp_path, "a", "b") as switch:
        assert states(switch) == [EngineState.STOPPED] * 2, "a restart frees no memory otherwise"
        await switch.resume()
        await until_running(switch, 2)
        assert switch.service.health() is Health.HEALTHY


async def test_what_its_owner_had_unloaded_before_stays_unloaded(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as switch:
        await switch.service.engines[1].unload_now()
        await switch.pause(unload=True)
        await switch.resume()
        await until_running(switch, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert states(switch) == [EngineState.RUNNING, EngineState.STOPPED]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"since": "x", "unload": true}', "\udc80"])
async def test_a_damaged_file_means_paused(tmp_path: Path, text: str) -> None:
    """It is there because somebody wanted no requests."""
    (tmp_path / PAUSED_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    async with running(tmp_path, "a") as switch:
        assert switch.service.paused
        assert switch.since == NOW


async def test_a_pause_that_cannot_be_remembered_holds_and_says_so(tmp_path: Path) -> None:
    made = service_of("a")
    switch = PauseSwitch(made, tmp_path / "missing")
    with pytest.raises(ConfigError, match="until the next start only"):
        await switch.pause(unload=False)
    assert made.paused
    (tmp_path / "missing" / PAUSED_FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot remove"):
        await switch.resume()
    assert made.paused


async def test_who_tells_peers_models_tokens_and_times(tmp_path: Path) -> None:
    made = service_of("a")
    keeper = UsageKeeper(tmp_path, made.meter)
    commands = OwnerCommands(OWN, PauseSwitch(made, tmp_path), keeper).by_name()
    for peer in (OWN, PEER, PEER):
        made.meter.open(peer).settle(ModelName("a"), Usage(3, 8))
    told = await commands["provider.who"]({})
    times = {"first_used": "2027-01-15T08:00:00Z", "last_used": "2027-01-15T08:00:00Z"}
    each = {"model": "a", **times}
    assert sorted(told["usage"], key=lambda row: row["requests"]) == [
        {"peer": OWN, "own": True, "requests": 1, "prompt_tokens": 3, "completion_tokens": 8}
        | each,
        {"peer": PEER, "own": False, "requests": 2, "prompt_tokens": 6, "completion_tokens": 16}
        | each,
    ]
    assert told["totals"] == {
        "peers": 2,
        "requests": 3,
        "prompt_tokens": 9,
        "completion_tokens": 24,
    }
    assert told["since"] == "2027-01-14T08:00:00Z"
    assert told["quota"] == {"requests_per_day": 7, "tokens_per_day": 0}
    assert (told["paused"], told["left_off"]) == (False, 0)
    json.dumps(told)


async def test_an_edge_that_serves_nothing_is_not_paused(tmp_path: Path) -> None:
    """Its owner meant another node; nobody would find out why it stays paused."""
    made = service_of()
    keeper = UsageKeeper(tmp_path, made.meter)
    commands = OwnerCommands(OWN, PauseSwitch(made, tmp_path), keeper).by_name()
    with pytest.raises(ConfigError, match="nothing to pause"):
        await commands["provider.pause"]({})
    assert (made.paused, files(tmp_path)) == (False, [])


async def test_who_says_from_which_hour_on_it_counts(tmp_path: Path) -> None:
    """What was used in the hour that `since` falls into is in the sum."""
    meter = Meter(OWN, Quota(), lambda: NOW + 1_800)
    made = ProviderService(OWN, NodeMetrics().provider, meter)
    keeper = UsageKeeper(tmp_path, meter)
    commands = OwnerCommands(OWN, PauseSwitch(made, tmp_path), keeper).by_name()
    told = await commands["provider.who"]({"since_seconds": 60})
    assert told["since"] == "2027-01-15T08:00:00Z"


@pytest.mark.parametrize("seconds", [0, -1, 91 * 86_400, "day", None, True, float("nan"), []])
async def test_a_nonsensical_time_is_refused(tmp_path: Path, seconds: object) -> None:
    made = service_of("a")
    keeper = UsageKeeper(tmp_path, made.meter)
    commands = OwnerCommands(OWN, PauseSwitch(made, tmp_path), keeper).by_name()
    with pytest.raises(ConfigError, match="90 days"):
        await commands["provider.who"]({"since_seconds": seconds})
