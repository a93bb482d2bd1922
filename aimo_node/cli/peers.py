"""`aimo peers`: whom a running node is linked to and why so; at the authority, who is a member."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
from click.core import ParameterSource

from aimo_node.cli.edge_client import (
    DEFAULT_EDGE,
    EdgeClient,
    EdgeError,
    key_file_flag,
    read_key,
)
from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, state_flag
from aimo_node.cli.listing import print_table
from aimo_node.cli.peer_listing import print_peers

ANSWER_SECONDS: Final = 10.0

_MEMBER_COLUMNS = ("peer id", "roles", "state", "joined", "renewed", "certificate ends")
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("peers", invoke_without_command=True, subcommand_metavar="[COMMAND]")
@state_flag
@config_flag
@click.option(
    "--edge",
    metavar="URL",
    help=f"Ask this edge over HTTP instead; it tells of providers only.  [without a node here:"
    f" {DEFAULT_EDGE}]",
)
@key_file_flag
@_json_flag
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    edge: str | None,
    key_file: str | None,
    as_json: bool,
    **_flags: object,
) -> None:
    """Show a node's peers: path, round trip, since when, why.

    An edge shows the providers it knows besides, and how busy they are. The commands below ask the
    authority of the mesh, on its own machine.

    \b
    Example:
      aimo peers
      aimo peers --state /var/lib/aimo --json
      aimo peers --edge http://127.0.0.1:8000
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return
    if edge is not None or key_file is not None:
        answer = _providers_of(edge or DEFAULT_EDGE, read_key(key_file))
    else:
        answer = _peers_of_node(context)
    peers = answer.get("data") or []
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif peers:
        print_peers(peers)
    else:
        is_edge = "node" not in answer
        nobody = "no providers have joined yet" if is_edge else "no peer is linked yet"
        click.echo(nobody, err=True)


def _refuse_flags_before(context: click.Context) -> None:
    """They would be ignored there: a `--state` would name another node than the one that is asked.

    Raises:
        click.UsageError: there are some.
    """
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} belongs behind the command:"
                f" aimo peers {context.invoked_subcommand} {parameter.opts[0]} …"
            )


def _peers_of_node(context: click.Context) -> Mapping[str, Any]:
    """What the node here says; if none runs and none was named, what the usual edge says."""
    from aimo_node.assembly.control_socket import ask_node
    from aimo_node.errors import ConfigError

    state = load_from(context).settings.node.state
    answer: dict[str, Any] = {"object": "list", "data": []}
    request = {"command": "node.peers"}
    try:
        while True:
            part = ask_node(state, request, ANSWER_SECONDS)
            answer["node"] = part["node"]
            answer["data"] += part["data"]
            if part["next"] is None:
                return answer
            request["after"] = part["next"]
    except ConfigError as error:
        if context.get_parameter_source("state") is ParameterSource.COMMANDLINE:
            raise Failure(str(error)) from error
        return _providers_of_edge(str(error))


def _providers_of(edge: str, key: str | None) -> Mapping[str, Any]:
    return EdgeClient(edge, key).get("/v1/providers")


def _providers_of_edge(problem: str) -> Mapping[str, Any]:
    try:
        answer = _providers_of(DEFAULT_EDGE, None)
    except EdgeError as error:
        raise Failure(f"{problem}; and {error.message}") from error
    click.echo(f"{problem}; the edge at {DEFAULT_EDGE} knows:", err=True)
    return answer


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
