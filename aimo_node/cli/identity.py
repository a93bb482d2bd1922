"""`aimo id`: this node's peer id."""

from __future__ import annotations

import json

import click

from aimo_node.cli.flags import config_flag, load_from, state_flag


@click.command("id")
@state_flag
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """Print this node's peer id.

    Makes the identity if there is none yet.

    \b
    Example:
      aimo id --state /var/lib/aimo
    """
    from aimo_node.mesh.identity import load_identity, peer_id_of

    path = load_from(context).settings.node.identity_file
    peer_id = peer_id_of(load_identity(path))
    answer = json.dumps({"peer_id": peer_id, "identity": str(path)}) if as_json else peer_id
    click.echo(answer)
