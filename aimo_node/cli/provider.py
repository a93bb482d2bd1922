"""`aimo provider`: serves models from a local engine to the mesh."""

from __future__ import annotations

import click

from aimo_node.cli.flags import node_flags, provider_flags


@click.command("provider")
@provider_flags
@node_flags
@click.pass_context
def command(context: click.Context, /, **_flags: object) -> int:
    """Serve models from an engine to the mesh.

    It is ready once its engine is and it has joined.

    \b
    Example:
      aimo provider --engine llama --join aimo:…
      aimo provider --engine openai --endpoint http://127.0.0.1:8001/v1 --model llama3:8b \\
          --join @/run/aimo/join
    """
    from aimo_node.cli.running import run_command
    from aimo_node.domain.ids import Role

    return run_command(context, Role.PROVIDER)
