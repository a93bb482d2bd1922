"""`aimo models`: what can be asked at a running edge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from aimo_node.cli.edge_client import EdgeClient, edge_flag, key_file_flag, read_key
from aimo_node.cli.listing import print_table


@click.command("models")
@edge_flag
@key_file_flag
@click.option("--json", "as_json", is_flag=True, help="Print the edge's answer as JSON.")
def command(*, edge: str, key_file: str | None, as_json: bool) -> None:
    """List the models that an edge can reach.

    \b
    Example:
      aimo models --edge http://127.0.0.1:8000
    """
    client = EdgeClient(edge, read_key(key_file))
    answer = client.get("/v1/models")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    models = answer.get("data") or []
    if not models:
        click.echo("no models: no provider has joined yet", err=True)
        return
    columns = ("model", "context", "state", "endpoints", "features")
    print_table(columns, [_row(model) for model in models], wrapping=("endpoints", "features"))


def _row(model: Mapping[str, Any]) -> tuple[object, ...]:
    lists = (", ".join(map(str, model.get(name) or ())) for name in ("endpoints", "features"))
    context, state = model.get("context_length") or "?", model.get("state", "")
    return (model.get("id", ""), context, state, *lists)
