"""`aimo config show`: the settings in force, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from aimo_node.cli.flags import config_flag, load_from


@click.group("config")
def command() -> None:
    """Look at the configuration.

    \b
    Example:
      aimo config show
    """


@command.command("show")
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """Print every setting, its value and where it came from; never a secret.

    \b
    Example:
      aimo config show --config /etc/aimo/aimo.toml
    """
    from aimo_node.config.display import shown_values

    loaded = load_from(context)
    values = shown_values(loaded.settings)
    if as_json:
        settings = {
            key: {"value": value, "from": loaded.origins[key]} for key, value in values.items()
        }
        file = str(loaded.file) if loaded.file else None
        click.echo(json.dumps({"file": file, "settings": settings}, ensure_ascii=False, indent=2))
        return
    click.echo(f"# file: {loaded.file or 'none'}")
    _echo_table(values, loaded.origins)


def _echo_table(values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    """One `key = value  # origin` per setting; an empty value is one that is not set."""
    shown = {
        key: f"{key} = {json.dumps(value, ensure_ascii=False) if value is not None else '-'}"
        for key, value in values.items()
    }
    width = min(max(len(line) for line in shown.values()), 60)
    for key, line in shown.items():
        click.echo(f"{line:<{width}}  # {origins[key]}")
