"""What a vLLM is offered as: by its model's files, and by where the hub's library keeps them."""

from pathlib import Path

import pytest

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.ports.engine import EngineSettings
from providers.vllm.arguments import read_plan
from providers.vllm.hub_cache import downloaded_bytes, model_folder, snapshot
from providers.vllm.offer import features_of

TEXT = (Endpoint.CHAT, Endpoint.COMPLETIONS)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def plan(*arguments, model="Qwen/Qwen3-VL-8B"):
    return read_plan(EngineSettings(Path("/state"), model, engine_args=arguments))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with one model in two revisions."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen3-VL-8B"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


@pytest.mark.parametrize(
    ("config", "sees"),
    [
        ({"vision_config": {"depth": 27}}, True),
        ({"model_type": "llava", "mm_vision_tower": "clip"}, True),
        ({"vision_encoder": {"hidden_size": 1024}}, True),
        ({"vision_config": None}, False),
        ({"model_type": "qwen3"}, False),
        ({}, False),
    ],
)
def test_images_are_offered_by_what_the_configuration_says(config, sees):
    assert (Feature.VISION in features_of(plan(), TEXT, config)) is sees


def test_owner_may_forbid_images():
    config = {"vision_config": {"depth": 27}}
    forbidden = plan("--limit-mm-per-prompt", '{"image": 0}')
    assert Feature.VISION not in features_of(forbidden, TEXT, config)


def test_features_are_those_of_the_endpoints():
    assert features_of(plan(), (Endpoint.EMBEDDINGS,), {}) == ()
    assert set(features_of(plan(), (Endpoint.COMPLETIONS,), {})) == {
        Feature.JSON_SCHEMA,
        Feature.LOGPROBS,
    }
    assert Feature.TOOLS in features_of(plan(), TEXT, {})
    assert Feature.TOOLS not in features_of(plan("--tool-call-parser", "none"), TEXT, {})


def test_model_of_the_hub_is_found_in_its_cache(hub):
    assert model_folder(plan()) == hub / "snapshots" / COMMIT
    assert model_folder(plan("--revision", COMMIT)) == hub / "snapshots" / COMMIT
    assert model_folder(plan("--revision", "v2")) is None
    assert model_folder(plan(model="Qwen/other")) is None


def test_cache_is_where_its_owner_says(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    (tmp_path / "hub").symlink_to(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert model_folder(plan()) == tmp_path / "hub" / hub.name / "snapshots" / COMMIT
    monkeypatch.setenv("HF_HOME", "/nowhere")
    assert model_folder(plan()) is None
    assert model_folder(plan("--download-dir", str(tmp_path))) is not None


@pytest.mark.parametrize("revision", ["../../../etc", "", "main\n", "x" * 40])
def test_damaged_reference_leads_nowhere(hub, revision):
    (hub / "refs" / "main").write_text(revision)
    assert snapshot("Qwen/Qwen3-VL-8B", plan()) is None


def test_folder_of_the_owners_is_its_own(tmp_path):
    assert model_folder(plan(model=str(tmp_path))) == tmp_path


async def test_what_has_come_is_counted_with_what_is_on_its_way(hub):
    assert await downloaded_bytes(plan()) == 0
    (hub / "blobs" / "a").write_bytes(b"x" * 1000)
    (hub / "blobs" / "b.incomplete").write_bytes(b"x" * 500)
    assert await downloaded_bytes(plan()) == 1500
    assert await downloaded_bytes(plan(model="Qwen/other")) == 0
