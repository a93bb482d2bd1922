"""`aimo edge`: the HTTP door for consumers."""

from __future__ import annotations

import click

from aimo_node.cli.flags import edge_flags, node_flags


@click.command("edge")
@edge_flags
@node_flags
@click.pass_context
def command(context: click.Context, /, **_flags: object) -> int:
    """Open an HTTP door that speaks OpenAI for the mesh's models.

    It binds loopback unless keys and TLS (or a proxy) are configured.

    \b
    Example:
      aimo edge --join aimo:…
      aimo edge --join aimo:… --http 0.0.0.0:8443 --client-keys-file keys.txt \\
          --tls-cert cert.pem --tls-key key.pem
    """
    from aimo_node.cli.running import run_command
    from aimo_node.domain.ids import Role

    return run_command(context, Role.EDGE)
