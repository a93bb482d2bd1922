"""Flags and settings: the same thing under two names, and only what was given counts."""

from __future__ import annotations

import click
import pytest

from aimo_node.cli.flags import SettingOption, flags_layer
from aimo_node.cli.main import COMMANDS, aimo
from aimo_node.config.settings import KEYS

LONG_RUNNING = ("up", "relay", "provider", "edge")
COMMON = {
    *("--state", "--config", "--join", "--mesh-secret-file", "--open", "--listen", "--http"),
    *("--announce", "--grace", "--ready-json", "--log-level", "--log-format", "--watch-stdin"),
}
PROVIDER = {
    *("--engine", "--model", "--endpoint", "--api-key-file", "--engine-args"),
    *("--requests-max", "--served-name", "--region", "--models", "--api-key-env"),
    *("--waiting-max", "--idle-unload", "--tokens-max", "--media-domain"),
    *("--quota-requests-per-day", "--quota-tokens-per-day"),
}
EDGE = {
    *("--client-keys-file", "--tls-cert", "--tls-key", "--behind-proxy", "--allowed-host"),
    *("--request-deadline", "--trust"),
}


def command_of(name: str) -> click.Command:
    command = aimo.get_command(click.Context(aimo), name)
    assert command is not None
    return command


def flags_of(name: str) -> set[str]:
    return {option for parameter in command_of(name).params for option in parameter.opts}


def test_every_long_running_command_has_the_flags_of_the_contract() -> None:
    circuits = {"--member-megabytes-per-second", "--circuit-megabytes-max"}
    assert flags_of("relay") == COMMON | {"--join-file", "--authority"} | circuits
    assert flags_of("provider") == COMMON | PROVIDER
    assert flags_of("edge") == COMMON | EDGE
    assert flags_of("up") == COMMON | PROVIDER | EDGE | {"--join-file", "--authority"}


def test_every_flag_that_is_a_setting_names_one_that_exists() -> None:
    options = [
        parameter
        for name in COMMANDS
        for parameter in command_of(name).params
        if isinstance(parameter, SettingOption)
    ]
    assert {option.setting for option in options} == set(KEYS)


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_flag_that_is_not_given_leaves_file_and_environment_alone(name: str) -> None:
    command = command_of(name)
    layer = flags_layer(command.make_context(name, []))
    assert layer.values == {}


def test_flags_that_are_given_carry_value_and_origin() -> None:
    arguments = ["--join", "a", "--join", "b", "--open", "--requests-max", "3", "--region", "north"]
    layer = flags_layer(command_of("provider").make_context("provider", arguments))
    assert layer.values == {
        "mesh": {"join": ["a", "b"], "open": True},
        "provider": {"requests_max": 3, "region": "north"},
    }
    assert layer.origins["mesh.join"] == "flag --join"


@pytest.mark.parametrize("role", LONG_RUNNING)
def test_the_doctor_takes_whatever_the_node_takes(role: str) -> None:
    """Its advice is to be given the node's own command line."""
    assert flags_of(role) <= flags_of("doctor")
