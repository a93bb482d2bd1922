"""Which of Copilot's models are offered, as what; and what is read of plan and quotas."""

from __future__ import annotations

from typing import Any

import pytest

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import EngineStartFailed
from aimo_node.testing.fake_github import MODELS, USAGE
from providers.copilot.catalogue import MODELS_MAX, CatalogueModel, choose, read_catalogue
from providers.copilot.usage import read_usage


def test_only_models_that_can_chat_are_offered_with_what_they_can_do() -> None:
    found = read_catalogue({"data": list(MODELS)})
    assert [model.name for model in found] == ["gpt-test", "claude-test"]
    gpt, claude = (model.info(f"my-{model.name}") for model in found)
    assert gpt.name == "my-gpt-test"
    assert gpt.endpoints == (Endpoint.CHAT,)
    assert gpt.features == (Feature.TOOLS, Feature.VISION)
    assert claude.features == (Feature.TOOLS, Feature.JSON_SCHEMA)
    assert gpt.digest == b""


@pytest.mark.parametrize(
    ("limits", "context"),
    [
        ({"max_context_window_tokens": 128_000}, 128_000),
        ({"max_context_window_tokens": 128, "max_prompt_tokens": 60, "max_output_tokens": 8}, 68),
        ({"max_context_window_tokens": 64, "max_prompt_tokens": 60, "max_output_tokens": 8}, 64),
        ({"max_prompt_tokens": 60, "max_output_tokens": 8}, 68),
        ({"max_output_tokens": 8}, 0),
        ({"max_context_window_tokens": "many"}, 0),
        (None, 0),
    ],
)
def test_the_context_is_the_smallest_that_holds(limits: object, context: int) -> None:
    entry = {"id": "m", "capabilities": {"type": "chat", "limits": limits}}
    assert read_catalogue({"data": [entry]})[0].context_tokens == context


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "m", "capabilities": {"type": "embeddings"}},
        {"id": "m", "capabilities": {"type": "chat"}, "supported_endpoints": ["/responses"]},
        {"id": "m", "capabilities": {"type": "chat"}, "policy": {"state": "disabled"}},
        {"id": "m", "capabilities": {"type": "chat"}, "policy": {"state": "unconfigured"}},
        {"id": 7, "capabilities": {"type": "chat"}},
        {"id": "m"},
        "m",
        None,
    ],
)
def test_what_cannot_chat_here_is_passed_over(entry: object) -> None:
    assert read_catalogue({"data": [entry]}) == []


def test_a_list_in_any_shape_is_no_crash_and_has_an_end() -> None:
    assert read_catalogue(None) == read_catalogue({"data": {}}) == read_catalogue({}) == []
    many = [{"id": f"m{i % 200}", "capabilities": {"type": "chat"}} for i in range(400)]
    names = [model.name for model in read_catalogue({"data": many})]
    assert len(names) == len(set(names)) == MODELS_MAX


def test_models_are_chosen_by_name_or_all_are_taken() -> None:
    listed = [CatalogueModel("gpt-4.1"), CatalogueModel("claude-4")]
    assert list(choose({}, listed)) == ["gpt-4.1", "claude-4"]
    assert choose({"small": "claude-4"}, listed) == {"small": listed[1]}
    with pytest.raises(EngineStartFailed, match=r"gpt-41.*did you mean gpt-4\.1.*claude-4"):
        choose({"gpt-41": "gpt-41"}, listed)
    with pytest.raises(EngineStartFailed, match="no model that can chat"):
        choose({}, [])


def test_the_usage_of_a_paid_plan_is_read() -> None:
    usage = read_usage(USAGE)
    assert (usage.login, usage.plan, usage.reset_date) == (
        "octocat",
        "individual_pro",
        "2026-12-01",
    )
    chat, premium = usage.quotas
    assert chat.unlimited
    assert (premium.entitlement, premium.remaining, premium.percent_remaining) == (300, 120, 40)
    assert usage.to_json()["quotas"][1]["name"] == "premium_interactions"


def test_the_usage_of_a_free_plan_is_read() -> None:
    usage = read_usage(
        {
            "copilot_plan": "individual",
            "limited_user_quotas": {"chat": 125, "completions": 4000},
            "monthly_quotas": {"chat": 500, "completions": 4000},
            "limited_user_reset_date": "2026-12-11",
        }
    )
    assert usage.reset_date == "2026-12-11"
    assert [quota.percent_remaining for quota in usage.quotas] == [25, 100]


@pytest.mark.parametrize(
    ("quota", "percent"),
    [
        ({"entitlement": 300, "remaining": -1, "percent_remaining": -0.33}, 0),
        ({"entitlement": 300, "remaining": 150}, 50),
        ({"entitlement": 0, "remaining": 0}, 0),
        ({"percent_remaining": float("nan")}, 0),
        ({"percent_remaining": 1e99}, 100),
        ({"entitlement": "x", "remaining": None, "percent_remaining": True}, 0),
    ],
)
def test_a_quota_that_is_overdrawn_or_odd_is_no_crash(
    quota: dict[str, Any], percent: float
) -> None:
    usage = read_usage({"quota_snapshots": {"premium\x1b[2J": quota, "odd": 7}})
    assert [found.percent_remaining for found in usage.quotas] == [percent]
    assert "\x1b" not in usage.quotas[0].name


def test_an_answer_without_anything_is_no_crash() -> None:
    assert read_usage({}).quotas == ()
    assert read_usage({"quota_snapshots": {}, "limited_user_quotas": 1}).quotas == ()
