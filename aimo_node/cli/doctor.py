"""`aimo doctor`: which layer fails, what was seen, what to do."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

import click

from aimo_node.cli.flags import (
    authority_flag,
    edge_flags,
    join_file_flag,
    load_from,
    node_flags,
    provider_flags,
    relay_flags,
)

if TYPE_CHECKING:
    from aimo_node.assembly.doctor.finding import Finding
    from aimo_node.domain.ids import Role

_MARKS: Final = {"ok": "ok", "warning": "warn", "problem": "FAIL", "skipped": "skip"}
_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red", "skipped": None}
_UP: Final = "up"
_INDENT: Final = 17
"""Of what was seen: behind mark and name of the check."""
_TEXT_COLUMNS_MIN: Final = 40
"""A peer id has 52 characters and is not broken."""


@click.command("doctor")
@click.option(
    "--role",
    "role",
    type=click.Choice(["relay", "provider", "edge", _UP]),
    help="What the node is to be.  [default: provider with an engine, else edge]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@node_flags
@join_file_flag
@authority_flag
@relay_flags
@provider_flags
@edge_flags
@click.pass_context
def command(context: click.Context, /, *, role: str | None, as_json: bool, **_flags: object) -> int:
    """Look for what is wrong with a node, whether it runs or not.

    Give it the flags that the node gets. It changes nothing, starts no engine, and takes at most
    20 seconds. It exits with 1 if it finds a problem.

    \b
    Example:
      aimo doctor
      aimo doctor --role relay --state /var/lib/aimo
      aimo doctor --engine openai --endpoint http://127.0.0.1:8001/v1 --join aimo:…
    """
    import trio

    from aimo_node.assembly.doctor.check import Subject
    from aimo_node.assembly.doctor.examination import examine, has_problem
    from aimo_node.assembly.doctor.possible import possible_checks
    from aimo_node.cli.folders import LOCK_FILE
    from aimo_node.cli.open_files import OPEN_FILES
    from aimo_node.telemetry.logs import configure_logging

    configure_logging("error", "text")
    subject = Subject(lambda: load_from(context), LOCK_FILE, OPEN_FILES, _roles_of(role))
    tell = _say_nothing if as_json else _print
    findings = trio.run(examine, subject, possible_checks(), tell)
    if as_json:
        listed = [finding.to_json() for finding in findings]
        click.echo(json.dumps(listed, ensure_ascii=False, indent=2))
    return int(has_problem(findings))


def _roles_of(name: str | None) -> Role | None:
    from aimo_node.config.settings import ALL_ROLES
    from aimo_node.domain.ids import Role

    if name is None:
        return None
    return ALL_ROLES if name == _UP else Role[name.upper()]


def _say_nothing(_finding: Finding) -> None:
    """The list is printed as a whole."""


def _print(finding: Finding) -> None:
    from aimo_node.cli.edge_client import printable

    mark = click.style(f"{_MARKS[finding.verdict]:<4}", fg=_COLOURS[finding.verdict])
    layer = f" [{finding.layer}]" if finding.layer != finding.check else ""
    first, *rest = _lines(f"{printable(finding.seen)}{layer}", _INDENT)
    click.echo(f"{mark}  {finding.check:<11}{first}")
    for line in rest:
        click.echo(" " * _INDENT + line)
    for number, line in enumerate(_lines(printable(finding.do), _INDENT + 3)):
        click.echo(" " * _INDENT + ("   " if number else "-> ") + line)


def _lines(text: str, indent: int) -> list[str]:
    """In a terminal wrapped to its width; elsewhere one line, which is easier to search."""
    if not text or not sys.stdout.isatty():
        return [text] if text else []
    width = shutil.get_terminal_size().columns - indent
    return textwrap.wrap(
        text, max(width, _TEXT_COLUMNS_MIN), break_long_words=False, break_on_hyphens=False
    )
