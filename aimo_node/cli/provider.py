"""`aimo provider`: serves models from a local engine to the mesh; and its owner's controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click
from click.core import ParameterSource

from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, node_flags, provider_flags, state_flag

ANSWER_SECONDS: Final = 30.0
UNLOAD_SECONDS: Final = 120.0
"""What an engine answers may end within 30 s; then its process is ended."""

_COLUMNS: Final = (
    *("peer", "model", "requests", "prompt tokens", "completion tokens"),
    *("first used", "last used"),
)
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("provider", invoke_without_command=True, subcommand_metavar="[COMMAND]")
@provider_flags
@node_flags
@click.pass_context
def command(context: click.Context, /, **_flags: object) -> int:
    """Serve models from an engine to the mesh.

    It is ready once its engine is and it has joined. With a COMMAND, tell a provider that runs on
    this machine what its owner wants.

    \b
    Example:
      aimo provider --engine llama --join aimo:…
      aimo provider --engine openai --endpoint http://127.0.0.1:8001/v1 --model llama3:8b \\
          --join @/run/aimo/join
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return 0
    from aimo_node.cli.running import run_command
    from aimo_node.domain.ids import Role

    return run_command(context, Role.PROVIDER)


@command.command("pause")
@click.option(
    "--unload", is_flag=True, help="Unload the engines, too, and wait until their memory is free."
)
@state_flag
@config_flag
@_json_flag
@click.pass_context
def pause(context: click.Context, /, *, unload: bool, as_json: bool, **_flags: object) -> None:
    """Take no new requests; running ones finish.

    It stays paused until resumed, also after a restart.

    \b
    Example:
      aimo provider pause
      aimo provider pause --unload
    """
    seconds = UNLOAD_SECONDS if unload else ANSWER_SECONDS
    answer = _ask(context, {"command": "provider.pause", "unload": unload}, seconds)
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo("paused: new requests go elsewhere until `aimo provider resume`")
    if answer["running"]:
        click.echo(f"{answer['running']} running requests finish")


@command.command("resume")
@state_flag
@config_flag
@_json_flag
@click.pass_context
def resume(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """Take requests again after a pause.

    Engines that were unloaded for it are loaded.

    \b
    Example:
      aimo provider resume
    """
    answer = _ask(context, {"command": "provider.resume"}, ANSWER_SECONDS)
    click.echo(json.dumps(answer) if as_json else "resumed: requests are taken")


@command.command("who")
@click.option(
    "--since",
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="How far to look back, such as 90m, 24h or 7d; at most 90d, counted in whole hours.",
)
@state_flag
@config_flag
@_json_flag
@click.pass_context
def who(context: click.Context, /, *, since: str, as_json: bool, **_flags: object) -> None:
    """Show who used it: peer, model, requests, tokens, when.

    \b
    Example:
      aimo provider who
      aimo provider who --since 7d --json
    """
    from aimo_node.config.values import seconds_of

    try:
        seconds = seconds_of(since)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--since'") from error
    request = {"command": "provider.who", "since_seconds": seconds}
    answer = _ask(context, request, ANSWER_SECONDS)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        _print(answer)


def _refuse_flags_before(context: click.Context) -> None:
    """They would be ignored there: a `--state` would name another node than the one that is asked.

    Raises:
        click.UsageError: there are some.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} belongs behind the command:"
                f" aimo provider {context.invoked_subcommand} {parameter.opts[0]} …"
            )


def _ask(context: click.Context, request: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
    from aimo_node.assembly.control_socket import ask_node
    from aimo_node.errors import ConfigError

    state = load_from(context).settings.node.state
    try:
        return ask_node(state, request, seconds)
    except ConfigError as error:
        if "does not know that command" in str(error):
            raise Failure("the node of this state folder is no provider") from error
        raise Failure(str(error)) from error


def _print(answer: Mapping[str, Any]) -> None:
    from aimo_node.cli.listing import print_table  # a provider that runs for weeks needs none

    if answer["usage"]:
        print_table(_COLUMNS, [_row(row) for row in answer["usage"]])
        if answer["left_off"]:
            click.echo(f"and {answer['left_off']} more, used longer ago")
    totals = answer["totals"]
    click.echo(
        f"since {answer['since']}: {totals['requests']} requests of {totals['peers']} peers,"
        f" {totals['prompt_tokens']} prompt and {totals['completion_tokens']} completion tokens"
    )
    if answer["paused"]:
        click.echo(f"paused since {answer['paused_since']}")


def _row(row: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        f"{row['peer']} (this node)" if row["own"] else row["peer"],
        *(row["model"], row["requests"], row["prompt_tokens"], row["completion_tokens"]),
        *(row["first_used"], row["last_used"]),
    )
