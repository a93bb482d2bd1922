"""`aimo peers`: the providers a running edge knows; and, at the authority, who is a member."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from aimo_node.cli.edge_client import EdgeClient, edge_flag, key_file_flag, read_key
from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, state_flag
from aimo_node.cli.listing import print_table

ANSWER_SECONDS: Final = 10.0

_COLUMNS = ("peer id", "models", "status", "running", "waiting", "path", "engines", "region")
_MEMBER_COLUMNS = ("peer id", "roles", "state", "joined", "renewed", "certificate ends")
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("peers", invoke_without_command=True)
@edge_flag
@key_file_flag
@click.option("--json", "as_json", is_flag=True, help="Print the edge's answer as JSON.")
@click.pass_context
def command(context: click.Context, /, *, edge: str, key_file: str | None, as_json: bool) -> None:
    """List the providers that an edge knows, and how busy they are.

    The commands below ask the authority of the mesh, on its own machine.

    \b
    Example:
      aimo peers --edge http://127.0.0.1:8000
      aimo peers list
    """
    if context.invoked_subcommand is not None:
        return
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


@command.command("ban")
@click.argument("peer")
@state_flag
@config_flag
@click.pass_context
def ban(context: click.Context, /, *, peer: str, **_flags: object) -> None:
    """Shut a peer out of the mesh.

    Its links end within seconds, and it gets no certificate any more.

    \b
    Example:
      aimo peers ban 12D3KooW…
    """
    answer = _ask(context, {"command": "members.ban", "peer": peer})
    click.echo("banned" if answer["changed"] else "it was banned already", err=True)
    if not answer["joined"]:
        click.echo("it never joined this mesh: look whether the peer id is right", err=True)


@command.command("allow")
@click.argument("peer")
@state_flag
@config_flag
@click.pass_context
def allow(context: click.Context, /, *, peer: str, **_flags: object) -> None:
    """Lift a ban.

    A node that was a member is one again, without an invite.

    \b
    Example:
      aimo peers allow 12D3KooW…
    """
    answer = _ask(context, {"command": "members.allow", "peer": peer})
    click.echo("allowed" if answer["changed"] else "it was not banned", err=True)


@command.command("list")
@state_flag
@config_flag
@_json_flag
@click.pass_context
def members(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """List the members of the mesh and who is banned.

    \b
    Example:
      aimo peers list --state /var/lib/aimo
    """
    found: list[Mapping[str, Any]] = []
    more = True
    while more:
        answer = _ask(context, {"command": "members.list", "after": len(found)})
        found += answer["members"]
        more = bool(answer["more"])
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print_table(_MEMBER_COLUMNS, [_member_row(member) for member in found])


def _ask(context: click.Context, request: Mapping[str, Any]) -> Mapping[str, Any]:
    from aimo_node.assembly.control_socket import ask_node
    from aimo_node.cli.invite import authority_wanted
    from aimo_node.errors import ConfigError

    try:
        return ask_node(load_from(context).settings.node.state, request, ANSWER_SECONDS)
    except ConfigError as error:
        raise Failure(authority_wanted(str(error))) from error


def _member_row(member: Mapping[str, Any]) -> tuple[object, ...]:
    state = "banned" if member["banned"] else "linked" if member["linked"] else "away"
    if member["own"]:
        state = "this node"
    times = (_time(member[name]) for name in ("joined_ms", "renewed_ms", "expires_ms"))
    return (member["id"], ", ".join(member["roles"]) or "-", state, *times)


def _time(milliseconds: int) -> str:
    if not milliseconds:
        return "-"
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


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
