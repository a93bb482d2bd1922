"""`aimo peers`: the providers a running edge knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from aimo_node.cli.edge_client import EdgeClient, edge_flag, key_file_flag, read_key
from aimo_node.cli.listing import print_table

_COLUMNS = ("peer id", "models", "status", "running", "waiting", "path", "engines", "region")


@click.command("peers")
@edge_flag
@key_file_flag
@click.option("--json", "as_json", is_flag=True, help="Print the edge's answer as JSON.")
def command(*, edge: str, key_file: str | None, as_json: bool) -> None:
    """List the providers that an edge knows, and how busy they are.

    \b
    Example:
      aimo peers --edge http://127.0.0.1:8000
    """
    client = EdgeClient(edge, read_key(key_file))
    answer = client.get("/v1/providers")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    providers = answer.get("data") or []
    if not providers:
        click.echo("no providers have joined yet", err=True)
        return
    rows = [_row(provider) for provider in providers]
    print_table(_COLUMNS, rows, wrapping=("models", "engines", "region"))


def _row(provider: Mapping[str, Any]) -> tuple[object, ...]:
    states = provider.get("model_states") or {}
    models = [_with_state(model, states.get(model)) for model in provider.get("models") or ()]
    engines = [
        _with_state(engine.get("label"), engine.get("state"))
        for engine in provider.get("engines") or ()
    ]
    status = provider.get("status", "")
    if not provider.get("trusted", True):
        status = f"{status} (not trusted)"
    plain = (provider.get(name, "") for name in ("running", "waiting", "path"))
    kinds = ", ".join(engines) or provider.get("engine", "")
    region = provider.get("region", "")
    return (provider.get("id", ""), ", ".join(models), status, *plain, kinds, region)


def _with_state(name: object, state: object) -> str:
    """The name, and its state if it is not the usual one."""
    return str(name) if state in (None, "running") else f"{name} ({state})"
