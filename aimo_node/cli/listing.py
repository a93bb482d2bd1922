"""Tables for people; machines take `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import click

from aimo_node.cli.edge_client import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_COLUMNS: Final = 1000
"""Width when nobody looks: never cut a peer id for `grep`."""
WRAPPED_COLUMNS_MIN: Final = 24
"""Below this prose in a column is a tower of half words."""
GAP_COLUMNS: Final = 2


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], wrapping: Sequence[str] = ()
) -> None:
    """Print rows under their column names, aligned, values never cut short.

    `wrapping` names the columns whose values may go over several lines. In a terminal that is too
    narrow for the others each row becomes a block with one value a line.
    """
    from rich.console import Console

    cells = [[printable(str(value)) for value in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    widths = _widths(columns, cells, wrapping)
    if not console.is_terminal or sum(widths) + GAP_COLUMNS * (len(widths) - 1) <= console.width:
        _print(console, _table(columns, cells, wrapping, widths))
        return
    for number, row in enumerate(cells):
        if number:
            click.echo()
        _print(console, _block(columns, row))


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], wrapping: Sequence[str]
) -> list[int]:
    """The least width of each column, in terminal columns, at which it can be read."""
    from rich.cells import cell_len

    widths = []
    for name, values in zip(columns, zip(columns, *cells, strict=True), strict=True):
        widest = max(map(cell_len, values))
        widths.append(min(widest, WRAPPED_COLUMNS_MIN) if name in wrapping else widest)
    return widths


def _table(
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    wrapping: Sequence[str],
    widths: Sequence[int],
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in zip(columns, widths, strict=True):
        table.add_column(name, overflow="fold", min_width=width, no_wrap=name not in wrapping)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _block(columns: Sequence[str], row: Sequence[str]) -> RenderableType:
    """One value a line behind its name; what is empty is left out."""
    from rich.table import Table
    from rich.text import Text

    block = Table.grid(padding=(0, GAP_COLUMNS))
    block.add_column(style="bold", no_wrap=True, min_width=max(map(len, columns)))
    block.add_column(overflow="fold")
    for name, value in zip(columns, row, strict=True):
        if value:
            block.add_row(Text(name), Text(value))
    return block


def _print(console: Console, table: RenderableType) -> None:
    """Print without the blanks that fill lines up: they make short lines wrap when copied."""
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
