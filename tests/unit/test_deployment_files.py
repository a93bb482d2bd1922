"""The container and service files: every command line in them is one the program accepts.

No container engine is needed; what the files say is compared with the real command-line parser
and with each other.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from aimo_node.cli.flags import load_from
from aimo_node.cli.main import aimo

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKER = ROOT / "scripts" / "docker"
UNITS = sorted((ROOT / "scripts" / "systemd").glob("*.service"))
ROLES = ("relay", "provider", "edge")
GRACE_SECONDS = 30.0

VARIABLES = {"STATE_DIRECTORY": "/var/lib/aimo", "CREDENTIALS_DIRECTORY": "/run/credentials/aimo"}


def compose() -> dict[str, Any]:
    document = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(document, dict)
    return document


def service(name: str) -> dict[str, Any]:
    found = compose()["services"][name]
    assert isinstance(found, dict)
    return found


def with_defaults(text: str) -> str:
    """Resolve `${NAME:-default}` as compose does with an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def unit_settings(unit: Path) -> dict[str, list[str]]:
    """Every `Key=value` of a unit, continuation lines joined; a key may occur more than once."""
    settings: dict[str, list[str]] = {}
    for line in unit.read_text().replace("\\\n", " ").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value.strip())
    return settings


def unit_command(unit: Path) -> list[str]:
    (line,) = unit_settings(unit)["ExecStart"]
    for name, value in VARIABLES.items():
        line = line.replace(f"${{{name}}}", value)
    return shlex.split(line)


def command_lines() -> dict[str, list[str]]:
    lines = {
        f"compose {name}": [with_defaults(part) for part in service(name)["command"]]
        for name in ROLES
    }
    return lines | {unit.stem: unit_command(unit) for unit in UNITS}


def parse(line: list[str]) -> click.Context:
    """Parse with the program's own parser, without running anything."""
    program, *arguments = line
    assert Path(program).name == "aimo"
    group = aimo.make_context("aimo", list(arguments))
    name, command, rest = aimo.resolve_command(group, [*group._protected_args, *group.args])
    assert command is not None
    return command.make_context(name, rest, parent=group)


def test_there_is_a_service_and_a_unit_for_every_role() -> None:
    assert set(ROLES) < set(compose()["services"])
    assert [unit.stem for unit in UNITS] == sorted(f"aimo-{role}" for role in ROLES)


@pytest.mark.parametrize("name", command_lines())
def test_command_line_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags and values both: a wrong multiaddr or a misspelt flag stops a service at its start."""
    monkeypatch.chdir("/")
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, "/nonexistent")
    line = command_lines()[name]
    context = parse(line)
    assert context.info_name == name.replace("aimo-", "").replace("compose ", "")
    assert load_from(context).settings.node.state


def test_a_misspelt_flag_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse([*command_lines()["compose relay"], "--join-fiel", "x"])


@pytest.mark.parametrize("name", ["provider", "edge"])
def test_others_join_with_the_file_the_relay_writes(name: str) -> None:
    written = parse(command_lines()["compose relay"]).params["join_file"]
    assert f"@{written}" in service(name)["command"]
    assert {"join:/join:ro"} <= set(service(name)["volumes"])
    assert "join:/join" in service("relay")["volumes"]


@pytest.mark.parametrize("name", ROLES)
def test_containers_hold_no_rights_they_do_not_need(name: str) -> None:
    settings = service(name)
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert f"{name}-state:/state" in settings["volumes"]


def test_image_does_not_run_as_root() -> None:
    last_stage = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)", last_stage, re.MULTILINE)
    assert users == ["10001:10001"]
    assert "HEALTHCHECK" in last_stage


@pytest.mark.parametrize("name", ROLES)
def test_health_check_asks_where_the_role_answers(name: str) -> None:
    http = load_from(parse(command_lines()[f"compose {name}"])).settings.edge.http_bind
    url = re.search(r'"(http://[^"]+)"', (DOCKER / "healthcheck.py").read_text())
    assert http is not None
    assert url is not None
    assert url[1] == f"http://127.0.0.1:{http[1]}/readyz"


def test_edge_in_a_container_is_published_on_loopback_only() -> None:
    """It speaks plain HTTP; the world comes through the proxy."""
    assert service("edge")["ports"] == ["127.0.0.1:8000:8000"]


def test_proxy_forwards_to_the_edge_and_lets_cancelling_through() -> None:
    caddyfile = (DOCKER / "Caddyfile").read_text()
    instructions = [line for line in caddyfile.splitlines() if not line.strip().startswith("#")]
    assert "reverse_proxy edge:8000" in "\n".join(instructions)
    assert "flush_interval" not in "\n".join(instructions)
    assert service("caddy")["profiles"] == ["tls"]


def test_secrets_are_files_since_the_containers_are_read_only() -> None:
    """Compose refuses any other kind for a service that is `read_only`."""
    assert [set(secret) for secret in compose()["secrets"].values()] == [{"file"}]


def test_every_volume_and_secret_is_declared_and_every_mounted_file_exists() -> None:
    document = compose()
    for settings in document["services"].values():
        for volume in settings.get("volumes", []):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source[0] == "." else source in document["volumes"]
            assert known, source
        assert set(settings.get("secrets", [])) <= set(document["secrets"])


@pytest.mark.parametrize("name", [f"compose {role}" for role in ROLES] + [u.stem for u in UNITS])
def test_stopping_leaves_time_for_running_requests(name: str) -> None:
    grace = load_from(parse(command_lines()[name])).settings.node.grace_seconds
    if name.startswith("compose "):
        limit = service(name.removeprefix("compose "))["stop_grace_period"]
        seconds = float(limit.removesuffix("s"))
    else:
        (limit,) = unit_settings(ROOT / "scripts" / "systemd" / f"{name}.service")["TimeoutStopSec"]
        seconds = float(limit)
    assert grace == GRACE_SECONDS
    assert seconds >= grace + 10


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_keeps_secrets_in_credentials_and_state_in_its_own_folder(unit: Path) -> None:
    settings = unit_settings(unit)
    assert settings["DynamicUser"] == ["yes"]
    assert settings["StateDirectory"] == [unit.stem]
    assert settings["Restart"] == ["on-failure"]
    credentials = {line.partition(":")[0] for line in settings.get("LoadCredential", [])}
    used = set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/([\w-]+)", unit.read_text()))
    assert used == credentials


def test_image_is_built_from_the_locked_list_for_a_supported_python() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "scripts/install.py --copy" in dockerfile
    assert not re.search(r"\bpip install\b", dockerfile)
    (version,) = set(re.findall(r"^FROM python:3\.(\d+)-slim", dockerfile, re.MULTILINE))
    assert int(version) in range(11, 14)
