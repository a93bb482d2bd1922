"""Who is there: descriptors, heartbeats, links, forgetting."""

from __future__ import annotations

from dataclasses import replace

from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.routing import table as table_module
from aimo_node.routing.table import RESTART_SECONDS, STATUS_SECONDS_MAX, RoutingTable

RELAY, OTHER_RELAY, PEER = PeerId("relay"), PeerId("other relay"), PeerId("provider")
TINY = ModelName("tiny")


def descriptor(
    peer: PeerId = PEER,
    *models: str,
    incarnation: int = 1,
    revision: int = 1,
    state: EngineState = EngineState.RUNNING,
) -> Descriptor:
    return Descriptor(
        peer=peer,
        incarnation=incarnation,
        revision=revision,
        models=tuple(ModelInfo(ModelName(name)) for name in models or ("tiny",)),
        engine_state=state,
        requests_max=4,
    )


def status(seq: int, health: Health = Health.HEALTHY, *, incarnation: int = 1) -> Status:
    return Status(PEER, incarnation, seq, health, Load(running=seq))


def test_a_described_provider_serves_its_models() -> None:
    table = RoutingTable()
    assert table.describe(RELAY, descriptor(PEER, "tiny", "large"), 1.0)
    assert [entry.peer for entry in table.serving(TINY)] == [PEER]
    assert [model.name for model in table.models()] == ["large", "tiny"]


def test_a_newer_descriptor_replaces_the_models_and_an_older_one_is_ignored() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(PEER, "large", revision=2), 1.0)
    assert not table.describe(RELAY, descriptor(PEER, "tiny", revision=1), 2.0)
    assert table.serving(TINY) == []
    assert table.describe(RELAY, descriptor(PEER, "tiny", revision=3), 3.0)
    assert table.serving(ModelName("large")) == []
    assert [entry.peer for entry in table.serving(TINY)] == [PEER]


def test_who_comes_or_goes_between_two_decisions_is_counted() -> None:
    table = RoutingTable()
    for name in ("a", "b", "c"):
        table.describe(RELAY, descriptor(PeerId(name)), 1.0)
        assert name in [entry.peer for entry in table.in_turn(TINY)]
    table.forget(RELAY, PeerId("b"))
    assert sorted(entry.peer for entry in table.in_turn(TINY)) == ["a", "c"]


def test_heartbeats_only_grow() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.report(RELAY, status(5), 1.0)
    table.report(RELAY, status(4, Health.OFFLINE), 2.0)
    entry = table.get(PEER)
    assert entry is not None
    assert entry.load.running == 5
    assert entry.health is Health.HEALTHY


def test_a_restarted_provider_starts_with_a_clean_slate() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.report(RELAY, status(9, Health.OFFLINE), 1.0)
    table.ended(PEER, failed=True, now=1.0)
    table.describe(RELAY, descriptor(incarnation=2), 2.0)
    entry = table.get(PEER)
    assert entry is not None
    assert entry.health is Health.HEALTHY
    assert entry.penalty_until == 0.0
    table.report(RELAY, status(10, Health.OFFLINE, incarnation=1), 3.0)
    assert entry.health is Health.HEALTHY


def test_an_engine_that_is_not_running_is_offline() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(state=EngineState.STARTING), 1.0)
    entry = table.get(PEER)
    assert entry is not None
    assert entry.health is Health.OFFLINE
    assert table.models() == []


def test_a_provider_stays_while_one_source_reports_it() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.describe(OTHER_RELAY, descriptor(), 1.0)
    table.forget(RELAY, PEER)
    assert len(table) == 1
    table.forget(OTHER_RELAY, PEER)
    assert len(table) == 0
    assert table.serving(TINY) == []


def test_a_source_cannot_take_away_what_it_never_reported() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.forget(OTHER_RELAY, PEER)
    assert len(table) == 1


def test_silence_of_every_source_ends_in_forgetting() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    assert table.expire(1.0 + STATUS_SECONDS_MAX) == []
    assert table.expire(1.1 + STATUS_SECONDS_MAX) == [PEER]


def test_an_open_link_keeps_a_provider_though_its_relay_is_gone() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.linked(PEER, "direct", 1.0)
    assert table.expire(1000.0) == []
    table.unlinked(PEER)
    assert len(table) == 0


def test_a_relay_that_starts_anew_gets_time_to_hear_of_its_providers_again() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 100.0)
    table.restart(RELAY, 101.0)
    assert table.expire(101.0 + RESTART_SECONDS - 0.1) == []
    assert table.expire(101.0 + RESTART_SECONDS + 0.1) == [PEER]


def test_a_relay_that_starts_anew_and_repeats_a_provider_keeps_it() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 100.0)
    table.restart(RELAY, 101.0)
    table.report(RELAY, status(1), 103.0)
    assert table.expire(101.0 + RESTART_SECONDS + 0.1) == []


def test_failures_are_held_against_a_provider_for_a_doubling_while() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    entry = table.get(PEER)
    assert entry is not None
    penalties, now = [], 10.0
    for _ in range(8):
        table.begun(PEER)
        table.ended(PEER, failed=True, now=now)
        penalties.append(entry.penalty_until - now)
        now = entry.penalty_until
    assert penalties[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(penalties) == table_module.PENALTY_SECONDS_MAX
    table.ended(PEER, failed=False, now=11.0)
    assert entry.penalty_until == 0.0
    assert entry.in_flight == 0


def test_a_lost_link_counts_once_however_many_requests_ran_on_it() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    for _ in range(1000):
        table.begun(PEER)
    for number in range(1000):
        table.ended(PEER, failed=True, now=10.0 + number / 1000)
    entry = table.get(PEER)
    assert entry is not None
    assert entry.penalty_until == 10.0 + table_module.PENALTY_SECONDS


def test_the_table_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(table_module, "PROVIDERS_MAX", 2)
    table = RoutingTable()
    added = [table.describe(RELAY, descriptor(PeerId(f"p{n}")), 1.0) for n in range(3)]
    assert added == [True, True, False]


def test_one_relay_cannot_fill_the_table(monkeypatch) -> None:
    monkeypatch.setattr(table_module, "PROVIDERS_PER_SOURCE_MAX", 2)
    table = RoutingTable()
    added = [table.describe(RELAY, descriptor(PeerId(f"p{n}")), 1.0) for n in range(3)]
    assert added == [True, True, False]
    assert table.describe(OTHER_RELAY, descriptor(), 1.0)
    table.forget(RELAY, PeerId("p0"))
    assert table.describe(RELAY, descriptor(PeerId("p2")), 1.0)


def test_a_link_that_drained_says_nothing_about_the_next_one() -> None:
    """A link may drain because another one replaced it; the provider is still there."""
    table = RoutingTable()
    table.describe(RELAY, descriptor(), 1.0)
    table.linked(PEER, "direct", 1.0)
    table.link_state(PEER, suspect=False, draining=True)
    entry = table.get(PEER)
    assert entry is not None
    assert entry.health is Health.OFFLINE
    table.unlinked(PEER)
    assert entry.health is Health.HEALTHY


def test_a_provider_without_anything_to_offer_is_offline() -> None:
    """It is shown with its engines all the same."""
    table = RoutingTable()
    starting = EngineInfo("gpu", "vllm", EngineState.STARTING, (TINY,))
    table.describe(RELAY, Descriptor(PEER, 1, (), engines=(starting,), revision=1), 1.0)
    table.report(RELAY, status(1), 1.0)
    entry = table.get(PEER)
    assert entry is not None
    assert (entry.health, entry.available) == (Health.OFFLINE, False)
    assert table.models() == []
    assert table.knows(TINY)
    assert [one.peer for one in table.planned(TINY)] == [PEER]
    running = replace(descriptor(revision=2), engines=(starting,))
    table.describe(RELAY, running, 2.0)
    assert (entry.health, entry.available) == (Health.HEALTHY, True)
    assert list(table.planned(TINY)) == []
    assert [model.name for model in table.models()] == [TINY]
    table.describe(RELAY, Descriptor(PEER, 1, (), engines=(starting,), revision=3), 3.0)
    table.forget(RELAY, PEER)
    assert not table.knows(TINY)


def test_a_model_is_listed_as_the_one_offers_it_that_answers_at_once() -> None:
    table = RoutingTable()
    states = (EngineState.STOPPED, EngineState.RUNNING, EngineState.INSTALLED)
    for number, state in enumerate(states):
        model = ModelInfo(TINY, context_tokens=number, state=state)
        described = Descriptor(
            PeerId(f"p{number}"), 1, (model,), engine_state=EngineState.RUNNING, revision=1
        )
        table.describe(RELAY, described, 1.0)
    (listed,) = table.models()
    assert (listed.context_tokens, listed.state) == (1, EngineState.RUNNING)


def test_models_of_a_provider_that_stops_are_not_listed() -> None:
    table = RoutingTable()
    table.describe(RELAY, descriptor(state=EngineState.STOPPING), 1.0)
    assert table.models() == []
    assert table.knows(TINY)
