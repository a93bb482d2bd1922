"""`aimo invite`: a string with which a newcomer joins a mesh that has an authority."""

from __future__ import annotations

import json
import re
from typing import Final

import click

from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, state_flag

ANSWER_SECONDS: Final = 10.0
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _as_seconds(_context: click.Context, _flag: click.Parameter, text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if found is None or not int(found[1]):
        raise click.BadParameter(f"{text!r} is not a duration such as 30m, 12h or 7d")
    return int(found[1]) * _UNITS[found[2]]


@click.command("invite")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(["provider", "edge", "relay"]),
    help="What the newcomer may do; may be repeated.  [default: provider and edge]",
)
@click.option(
    "--expires",
    callback=_as_seconds,
    default="1d",
    metavar="DURATION",
    help="Until when it can be redeemed, such as 30m, 12h or 7d.  [default: 1d]",
)
@click.option(
    "--uses",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="How many nodes it admits.  [default: 1]",
)
@state_flag
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    roles: tuple[str, ...],
    expires: int,
    uses: int,
    as_json: bool,
    **_flags: object,
) -> None:
    """Make an invite: what a newcomer's --join takes.

    To be run where the authority of the mesh runs ('aimo relay --authority'). Whoever has the
    string can use it, so hand it over like a password.

    \b
    Example:
      aimo invite --role provider --expires 7d
    """
    from aimo_node.assembly.control_socket import ask_node
    from aimo_node.errors import ConfigError

    request = {
        "command": "members.invite",
        "roles": list(roles) or ["provider", "edge"],
        "expires_seconds": expires,
        "uses": uses,
    }
    try:
        answer = ask_node(load_from(context).settings.node.state, request, ANSWER_SECONDS)
    except ConfigError as error:
        raise Failure(authority_wanted(str(error))) from error
    click.echo(json.dumps(answer, ensure_ascii=False, indent=2) if as_json else answer["invite"])


def authority_wanted(message: str) -> str:
    """What a node that runs no authority says, in words of use to its owner."""
    if "does not know that command" in message:
        return "the node of this state folder is not the authority of a mesh (relay --authority)"
    return message
