"""The `aimo` program: its commands, loaded only when used, and its exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any, Final

import click

from aimo_node import __version__
from aimo_node.errors import StartError

COMMANDS: Final = {
    "up": "aimo_node.cli.up",
    "relay": "aimo_node.cli.relay",
    "provider": "aimo_node.cli.provider",
    "edge": "aimo_node.cli.edge",
    "demo": "aimo_node.cli.demo",
    "chat": "aimo_node.cli.chat",
    "models": "aimo_node.cli.models",
    "peers": "aimo_node.cli.peers",
    "invite": "aimo_node.cli.invite",
    "engine": "aimo_node.cli.engine",
    "auth": "aimo_node.cli.auth",
    "check-usage": "aimo_node.cli.check_usage",
    "id": "aimo_node.cli.identity",
    "config": "aimo_node.cli.configuration",
    "doctor": "aimo_node.cli.doctor",
}
"""Module of each command, in the order in which help lists them."""

EXIT_CODES: Final = {
    0: "done, also after SIGTERM once running requests have ended",
    1: "failed while running",
    2: "wrong usage or configuration",
    3: "the first join failed for 30 seconds",
    4: "the engine failed to start",
    130: "interrupted",
}
"""What the program exits with."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="aimo", message="%(prog)s %(version)s")
def aimo() -> None:
    """A peer-to-peer routing mesh for AI models.

    A provider serves models from a local engine, an edge is the HTTP door for apps that speak
    OpenAI, a relay lets the two find each other.

    \b
    Example:
      aimo demo --once       see all three at work, each a process of its own
      aimo up                all three in one process, http://127.0.0.1:8000
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with one of `EXIT_CODES`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `__main__` for the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None, command: click.Command = aimo) -> int:
    """Run one command line and return its exit code; errors become one sentence on stderr."""
    try:
        result: Any = command.main(args=arguments, prog_name="aimo", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except StartError as error:
        click.echo(f"aimo: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read our output has left, as in `aimo models | head`: not worth a traceback,
        # neither here nor when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0
