"""Engines are found by name, and a wrong name gets a useful answer."""

import pytest

from aimo_node.errors import ConfigError
from aimo_node.ports.engine import EngineSettings
from providers.registry import create_engine, engine_names


def test_built_in_engines_are_known():
    assert {"echo", "llama", "openai"} <= set(engine_names())


def test_engine_is_made_by_name(tmp_path):
    engine = create_engine("echo", EngineSettings(tmp_path, "echo"))
    assert engine.capabilities().engine == "echo"


def test_unknown_engine_names_the_nearest_and_lists_all(tmp_path):
    with pytest.raises(ConfigError, match=r"'lama' \(did you mean llama\?\).*echo, llama, openai"):
        create_engine("lama", EngineSettings(tmp_path))


def test_unknown_engine_far_from_any_still_lists_all(tmp_path):
    with pytest.raises(ConfigError, match="'zzz'; known engines: anthropic, copilot, echo"):
        create_engine("zzz", EngineSettings(tmp_path))


def test_engine_that_cannot_be_imported_is_a_configuration_error(tmp_path, monkeypatch):
    monkeypatch.setattr("providers.registry.BUILT_IN", {"broken": "no.such.module:create"})
    with pytest.raises(ConfigError, match=r"engine broken .* cannot be loaded"):
        create_engine("broken", EngineSettings(tmp_path))


def test_unknown_engine_argument_names_the_nearest(tmp_path):
    settings = EngineSettings(tmp_path, "echo", engine_args=["--token", "5"])
    with pytest.raises(ConfigError, match=r"did you mean --tokens\? known: --delay-ms"):
        create_engine("echo", settings)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tokens", "many"], "--tokens: 'many' is not a whole number from 1"),
        (["--tokens", "0"], "--tokens: '0' is not a whole number"),
        (["--delay-ms", "-1"], "--delay-ms"),
        (["--delay-ms", "nan"], "'nan' is not a number from 0 to 60000"),
        (["--tokens"], "--tokens: expected one argument"),
    ],
)
def test_malformed_engine_argument_is_named(tmp_path, arguments, named):
    with pytest.raises(ConfigError, match=named):
        create_engine("echo", EngineSettings(tmp_path, "echo", engine_args=arguments))
