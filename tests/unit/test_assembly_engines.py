"""One engine may serve its owner alone: only behind a door that nobody else reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimo_node.assembly.engines import EngineMaker, free_label
from aimo_node.config.provider import EngineSection
from aimo_node.config.settings import ALL_ROLES, EdgeSettings, NodeSettings, Settings
from aimo_node.domain.ids import Role
from aimo_node.errors import ConfigError

COPILOT = EngineSection(name="copilot")


def maker(folder: Path, roles: Role, **edge: object) -> EngineMaker:
    return EngineMaker(Settings(node=NodeSettings(state=folder), edge=EdgeSettings(**edge)), roles)


@pytest.mark.parametrize("http", ["127.0.0.1:8000", "[::1]:0", "localhost:8000"])
def test_on_the_owners_loopback_it_is_made(tmp_path: Path, http: str) -> None:
    maker(tmp_path, ALL_ROLES, http=http).plan(COPILOT, "copilot").make().kill()


@pytest.mark.parametrize(
    ("roles", "edge"),
    [
        (ALL_ROLES, {"http": "0.0.0.0:8000"}),
        (ALL_ROLES, {"http": "192.0.2.1:8000"}),
        (ALL_ROLES, {"http": "edge.example:8000"}),
        (ALL_ROLES, {"http": "127.0.0.1:8000", "behind_proxy": True}),
        (ALL_ROLES, {"http": "off"}),
        (Role.PROVIDER, {"http": "127.0.0.1:8000"}),
    ],
)
def test_where_others_could_ask_it_is_refused(
    tmp_path: Path, roles: Role, edge: dict[str, object]
) -> None:
    """Also with keys and TLS: whom the keys are given to is not known."""
    with pytest.raises(ConfigError, match="serves its owner only"):
        maker(tmp_path, roles, **edge).plan(COPILOT, "copilot").make()


def test_labels_are_told_apart_by_numbers() -> None:
    assert free_label("llama", ["vllm"]) == "llama"
    assert free_label("llama", ["llama", "llama-2"]) == "llama-3"
