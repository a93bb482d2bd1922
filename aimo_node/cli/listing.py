"""Tables for people; machines take `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from aimo_node.cli.edge_client import printable

PIPE_COLUMNS: Final = 1000
"""Width when nobody looks: never cut a peer id for `grep`."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their column names, aligned, values never cut short."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row))
    console.print(table)
