"""`aimo engine`: how the engines of a running node are; load one, unload one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click

from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, state_flag
from aimo_node.cli.listing import print_table

ANSWER_SECONDS: Final = 10.0
LOAD_SECONDS: Final = 1800.0
"""A large model is read from a slow disk and compiled for minutes."""

_COLUMNS: Final = (
    *("label", "engine", "state", "models", "running", "waiting", "limit", "kv", "hits"),
    *("first token", "detail"),
)
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("engine")
def command() -> None:
    """Look at the engines of a node here, load and unload them.

    \b
    Example:
      aimo engine status
    """


@command.command("status")
@state_flag
@config_flag
@_json_flag
@click.pass_context
def status(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """List the engines: state, models, how busy they are, what is wrong.

    \b
    Example:
      aimo engine status --state /var/lib/aimo
    """
    _show(_ask(context, "engine.status", None, ANSWER_SECONDS), as_json=as_json)


@command.command("load")
@click.argument("label", required=False)
@state_flag
@config_flag
@_json_flag
@click.pass_context
def load(context: click.Context, /, *, label: str | None, as_json: bool, **_flags: object) -> None:
    """Load an engine that was unloaded or given up, and wait for it.

    \b
    Example:
      aimo engine load vllm
    """
    if not as_json:
        click.echo(f"loading {label or 'the engine'}; its progress is in the node's log", err=True)
    _show(_ask(context, "engine.load", label, LOAD_SECONDS), as_json=as_json)


@command.command("unload")
@click.argument("label", required=False)
@state_flag
@config_flag
@_json_flag
@click.pass_context
def unload(
    context: click.Context, /, *, label: str | None, as_json: bool, **_flags: object
) -> None:
    """Unload an engine; what it is answering may end in time.

    Its memory is free then. With `idle_unload` the next request loads it again, else
    `aimo engine load` does.

    \b
    Example:
      aimo engine unload vllm
    """
    _show(_ask(context, "engine.unload", label, LOAD_SECONDS), as_json=as_json)


def _ask(
    context: click.Context, name: str, label: str | None, seconds: float
) -> list[Mapping[str, Any]]:
    from aimo_node.assembly.control_socket import ask_node
    from aimo_node.errors import ConfigError

    state = load_from(context).settings.node.state
    request = {"command": name} | ({"label": label} if label else {})
    try:
        engines: list[Mapping[str, Any]] = ask_node(state, request, seconds)["engines"]
    except ConfigError as error:
        raise Failure(str(error)) from error
    return engines


def _show(engines: list[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(engines, ensure_ascii=False, indent=2))
    elif engines:
        print_table(_COLUMNS, [_row(engine) for engine in engines], wrapping=("models", "detail"))
        if engines[0]["paused"]:
            click.echo("paused by its owner: it takes no requests until `aimo provider resume`")
    else:
        click.echo("this node has no engines", err=True)


def _row(engine: Mapping[str, Any]) -> tuple[object, ...]:
    first_token = engine["first_token_ms"]
    return (
        engine["label"],
        " ".join(part for part in (engine["engine"], engine["version"]) if part),
        engine["state"],
        ", ".join(engine["models"]) or "-",
        engine["running"],
        engine["waiting"],
        engine["requests_max"] or "-",
        f"{engine['kv_used']:.0%}",
        f"{engine['prefix_hits']:.0%}",
        f"{first_token} ms" if first_token else "-",
        engine["detail"],
    )
