"""`aimo relay`: bootstrap, directory and circuit relay."""

from __future__ import annotations

import click

from aimo_node.cli.flags import authority_flag, join_file_flag, node_flags, relay_flags


@click.command("relay")
@node_flags
@join_file_flag
@relay_flags
@authority_flag
@click.pass_context
def command(context: click.Context, /, **_flags: object) -> int:
    """Help nodes find and reach each other; needs no GPU.

    Makes a mesh secret at its first start and prints the string that others join with. With
    --authority it admits by invites instead: 'aimo invite' makes one.

    \b
    Example:
      aimo relay
      aimo relay --listen /ip4/0.0.0.0/tcp/4001 --http 127.0.0.1:9090
      aimo relay --authority
    """
    from aimo_node.cli.running import run_command
    from aimo_node.domain.ids import Role

    return run_command(context, Role.RELAY)
