"""Who should answer, in which order, and why."""

from __future__ import annotations

import pytest

from aimo_node.domain.ids import Endpoint, ModelName, PeerId
from aimo_node.domain.models import (
    Descriptor,
    EngineInfo,
    EngineState,
    Health,
    Load,
    ModelInfo,
    Status,
)
from aimo_node.routing.policy import CANDIDATES_MAX, RouteRequest, Verdict, choose
from aimo_node.routing.table import RoutingTable

RELAY = PeerId("relay")
TINY = RouteRequest(ModelName("tiny"))


def table_of(**loads: int) -> RoutingTable:
    """Providers by name, each with that many running requests of ten."""
    table = RoutingTable()
    for name, running in loads.items():
        peer = PeerId(name)
        model = ModelInfo(ModelName("tiny"))
        table.describe(
            RELAY,
            Descriptor(
                peer, 1, (model,), engine_state=EngineState.RUNNING, requests_max=10, revision=1
            ),
            0.0,
        )
        table.report(RELAY, Status(peer, 1, 1, Health.HEALTHY, Load(running=running)), 0.0)
    return table


def order(table: RoutingTable, request: RouteRequest = TINY, now: float = 0.0) -> list[str]:
    return [str(candidate.peer) for candidate in choose(request, table, now).candidates]


def test_the_idle_provider_comes_first() -> None:
    assert order(table_of(busy=8, idle=0, half=5)) == ["idle", "half", "busy"]


def test_requests_we_sent_count_before_the_provider_reports_them() -> None:
    table = table_of(a=0, b=0)
    for _ in range(3):
        table.begun(PeerId("a"))
    assert order(table) == ["b", "a"]


@pytest.mark.parametrize("full", [Load(load=0.9), Load(kv_used=0.9)])
def test_what_is_full_for_other_reasons_than_requests_comes_later(full: Load) -> None:
    """An upstream near its rate limit, a key-value cache near its end."""
    table = table_of(full=0, half=5)
    table.report(RELAY, Status(PeerId("full"), 1, 2, Health.HEALTHY, full), 0.0)
    assert order(table) == ["half", "full"]


def test_equals_take_turns() -> None:
    table = table_of(a=0, b=0, c=0)
    chosen = []
    for _ in range(6):
        first = order(table)[0]
        chosen.append(first)
        table.begun(PeerId(first))
        table.ended(PeerId(first), failed=False, now=0.0)
    assert sorted(chosen[:3]) == ["a", "b", "c"]
    assert chosen[:3] == chosen[3:]


def test_trouble_comes_last_but_not_never() -> None:
    table = table_of(suspect=0, failed=0, degraded=0, busy=9)
    for name in ("suspect", "failed", "degraded", "busy"):
        table.linked(PeerId(name), "direct", 0.0)
    table.link_state(PeerId("suspect"), suspect=True, draining=False)
    table.ended(PeerId("failed"), failed=True, now=0.0)
    table.report(RELAY, Status(PeerId("degraded"), 1, 2, Health.DEGRADED, Load()), 0.0)
    assert order(table, now=0.5) == ["busy", "failed", "suspect", "degraded"]
    reasons = {c.peer: c.reasons for c in choose(TINY, table, 0.5).candidates}
    assert "silent" in reasons[PeerId("suspect")]
    assert "failed 1 in a row" in reasons[PeerId("failed")]


def test_offline_and_draining_providers_are_excluded_with_the_reason() -> None:
    table = table_of(off=0, draining=0, good=0)
    table.report(RELAY, Status(PeerId("off"), 1, 2, Health.OFFLINE, Load()), 0.0)
    table.linked(PeerId("draining"), "direct", 0.0)
    table.link_state(PeerId("draining"), suspect=False, draining=True)
    decision = choose(TINY, table, 0.0)
    assert [c.peer for c in decision.candidates] == ["good"]
    assert dict(decision.excluded) == {
        PeerId("off"): Verdict.OFFLINE,
        PeerId("draining"): Verdict.OFFLINE,
    }


def test_a_pinned_provider_is_the_only_candidate() -> None:
    request = RouteRequest(ModelName("tiny"), provider=PeerId("busy"))
    assert order(table_of(busy=9, idle=0), request) == ["busy"]


def test_a_pinned_provider_without_the_model_is_told_apart_from_an_unknown_one() -> None:
    table = table_of(a=0)
    wrong = choose(RouteRequest(ModelName("large"), provider=PeerId("a")), table, 0.0)
    assert wrong.provider_known
    assert wrong.excluded == ((PeerId("a"), Verdict.WRONG_MODEL),)
    unknown = choose(RouteRequest(ModelName("tiny"), provider=PeerId("x")), table, 0.0)
    assert not unknown.provider_known
    assert not unknown.candidates


def test_a_model_that_does_not_serve_the_endpoint_is_excluded() -> None:
    decision = choose(RouteRequest(ModelName("tiny"), Endpoint.IMAGES), table_of(a=0), 0.0)
    assert decision.excluded == ((PeerId("a"), Verdict.WRONG_ENDPOINT),)
    assert decision.model_known


def test_an_unknown_model_has_no_candidates() -> None:
    decision = choose(RouteRequest(ModelName("large")), table_of(a=0), 0.0)
    assert not decision.candidates
    assert not decision.model_known


def test_a_decision_among_a_thousand_looks_at_a_few_and_over_time_at_all() -> None:
    table = table_of(**{f"p{number}": 0 for number in range(1000)})
    chosen = set()
    for _ in range(1000):
        first = order(table)[0]
        chosen.add(first)
        table.begun(PeerId(first))
        table.ended(PeerId(first), failed=False, now=0.0)
    assert len(order(table)) <= CANDIDATES_MAX
    assert len(chosen) > 900


def test_the_one_that_can_is_found_among_a_thousand_that_cannot() -> None:
    table = table_of(**{f"p{number}": 0 for number in range(1000)})
    for number in range(1000):
        if number != 777:
            status = Status(PeerId(f"p{number}"), 1, 2, Health.OFFLINE, Load())
            table.report(RELAY, status, 0.0)
    assert order(table) == ["p777"]


def test_among_many_those_with_a_link_are_half_filled_before_others_are_dialled() -> None:
    table = table_of(**{f"p{number}": 0 for number in range(200)})
    linked = {f"p{number}" for number in range(100, 120)}
    for name in linked:
        table.linked(PeerId(name), "direct", 0.0)
    for _ in range(20 * 4):
        first = order(table)[0]
        assert first in linked
        table.begun(PeerId(first))
    for name in linked:
        table.unlinked(PeerId(name))  # nobody reports them as linked any more
    assert order(table)[0] not in linked


def test_a_relay_cannot_talk_an_edge_out_of_a_provider_it_is_linked_to() -> None:
    table = table_of(slandered=0, busy=9)
    table.linked(PeerId("slandered"), "direct", 0.0)
    table.report(RELAY, Status(PeerId("slandered"), 1, 2, Health.OFFLINE, Load()), 0.0)
    assert order(table) == ["busy", "slandered"]
    table.unlinked(PeerId("slandered"))
    assert order(table) == ["busy"]


def offer(
    table: RoutingTable,
    name: str,
    *states: EngineState,
    engine_state: EngineState = EngineState.RUNNING,
    revision: int = 2,
) -> PeerId:
    """A provider that offers tiny, large, … in these states."""
    peer = PeerId(name)
    models = tuple(
        ModelInfo(ModelName(model), state=state)
        for model, state in zip(("tiny", "large"), states, strict=False)
    )
    described = Descriptor(
        peer, 1, models, engine_state=engine_state, requests_max=10, revision=revision
    )
    table.describe(RELAY, described, 0.0)
    return peer


def test_one_that_answers_at_once_comes_before_one_that_loads_first() -> None:
    """However busy or silent it is, and though a load frees all of another one: a load takes
    minutes. Not if it is not well."""
    table = table_of(full=30, silent=0, sick=0)
    offer(table, "unloaded", EngineState.STOPPED)
    table.linked(PeerId("silent"), "direct", 0.0)
    table.link_state(PeerId("silent"), suspect=True, draining=False)
    table.report(RELAY, Status(PeerId("sick"), 1, 2, Health.DEGRADED, Load()), 0.0)
    assert order(table) == ["full", "silent", "unloaded", "sick"]
    reasons = {c.peer: c.reasons for c in choose(TINY, table, 0.0).candidates}
    assert [peer for peer, said in reasons.items() if "loads first" in said] == ["unloaded"]


def test_one_that_loads_first_is_better_than_nobody() -> None:
    for state in (EngineState.STOPPED, EngineState.INSTALLED, EngineState.STARTING):
        table = RoutingTable()
        peer = offer(table, "unloaded", state)
        assert order(table) == [peer]
        offer(table, "unloaded", state, engine_state=state, revision=3)
        assert order(table) == [peer], "nothing of it runs"


def test_the_one_that_is_loaded_is_found_among_a_thousand_that_are_not() -> None:
    table = RoutingTable()
    for number in range(1000):
        is_loaded = number == 777
        offer(table, f"p{number}", EngineState.RUNNING if is_loaded else EngineState.STOPPED)
    assert order(table)[0] == "p777"
    offer(table, "p777", EngineState.STOPPED, revision=3)
    offer(table, "p3", EngineState.RUNNING, revision=3)
    assert order(table)[0] == "p3"


def test_of_two_engines_of_a_provider_one_may_be_away() -> None:
    table = RoutingTable()
    peer = offer(table, "two", EngineState.RUNNING)
    assert order(table) == [peer]
    assert order(table, RouteRequest(ModelName("large"))) == []
    offer(table, "two", EngineState.RUNNING, EngineState.RUNNING, revision=3)
    assert order(table, RouteRequest(ModelName("large"))) == [peer]


def test_a_provider_that_stops_or_failed_is_no_candidate_whatever_it_lists() -> None:
    for engine_state in (EngineState.STOPPING, EngineState.ERROR, EngineState.NOT_INSTALLED):
        for state in (EngineState.RUNNING, EngineState.STOPPED):
            table = RoutingTable()
            peer = offer(table, "away", state, engine_state=engine_state)
            decision = choose(TINY, table, 0.0)
            assert decision.candidates == ()
            assert decision.excluded == ((peer, Verdict.OFFLINE),)


def test_a_model_whose_engine_is_not_ready_is_known_but_has_no_candidates() -> None:
    table = RoutingTable()
    model = ModelName("tiny")
    starting = EngineInfo("gpu", "vllm", EngineState.STARTING, (model,))
    for number in range(20):
        peer = PeerId(f"p{number}")
        table.describe(
            RELAY,
            Descriptor(peer, 1, (), engine_state=EngineState.STARTING, engines=(starting,)),
            0.0,
        )
    decision = choose(TINY, table, 0.0)
    assert decision.candidates == ()
    assert decision.model_known
    assert {verdict for _, verdict in decision.excluded} == {Verdict.NOT_READY}
    assert len(decision.excluded) <= CANDIDATES_MAX
    pinned = choose(RouteRequest(model, provider=PeerId("p3")), table, 0.0)
    assert pinned.excluded == ((PeerId("p3"), Verdict.NOT_READY),)
    offer(table, "ready", EngineState.RUNNING)
    assert order(table) == ["ready"]


def test_reasons_say_how_it_was_when_it_was_chosen() -> None:
    table = table_of(a=3)
    (candidate,) = choose(TINY, table, 0.0).candidates
    table.report(RELAY, Status(PeerId("a"), 1, 2, Health.DEGRADED, Load(running=9)), 0.0)
    assert candidate.reasons == ("healthy", "occupancy 0.3", "no link yet")


def test_only_trusted_providers_are_candidates_however_many_others_there_are() -> None:
    table = table_of(**{f"p{number}": 0 for number in range(300)})
    trusted = frozenset({PeerId("p7"), PeerId("p290"), PeerId("elsewhere")})
    decision = choose(RouteRequest(ModelName("tiny"), trusted=trusted), table, 0.0)
    assert {candidate.peer for candidate in decision.candidates} == {"p7", "p290"}
    assert {verdict for _, verdict in decision.excluded} == {Verdict.UNTRUSTED}
    pinned = RouteRequest(ModelName("tiny"), provider=PeerId("p8"), trusted=trusted)
    assert choose(pinned, table, 0.0).excluded == ((PeerId("p8"), Verdict.UNTRUSTED),)
    nobody = choose(RouteRequest(ModelName("tiny"), trusted=frozenset()), table, 0.0)
    assert nobody.candidates == ()
