"""`aimo up`: relay, provider and edge in one process, for a laptop."""

from __future__ import annotations

import click

from aimo_node.cli.flags import (
    authority_flag,
    edge_flags,
    join_file_flag,
    node_flags,
    provider_flags,
)


@click.command("up")
@node_flags
@join_file_flag
@authority_flag
@provider_flags
@edge_flags
@click.pass_context
def command(context: click.Context, /, **_flags: object) -> int:
    """Run everything in one process, on loopback.

    Without further flags it serves the demo model as 'tiny' at http://127.0.0.1:8000/v1.

    \b
    Example:
      aimo up
      aimo up --engine openai --endpoint http://127.0.0.1:9000/v1 --model llama3:8b
    """
    from aimo_node.cli.running import run_command
    from aimo_node.config.settings import ALL_ROLES

    return run_command(context, ALL_ROLES)
