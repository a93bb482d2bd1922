"""How peers are shown: a line each in a pipe; in a terminal a line and what goes below it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from aimo_node.cli.edge_client import printable
from aimo_node.cli.listing import print_table

_PIPE_COLUMNS: Final = (
    *("peer id", "roles", "path", "round trip", "since", "models", "status", "running", "waiting"),
    *("relay", "address", "engines", "region", "reason"),
)
_COLUMNS: Final = ("peer", "roles", "path", "round trip", "since", "models")
_RIGHT: Final = 3
"""The column of the only numbers stands to the right."""
_GAP: Final = "  "
_TAIL: Final = 8
"""What a peer id ends with tells peers apart; all of them begin alike."""
_PEER_ID: Final = re.compile(r"\b[1-9A-HJ-NP-Za-km-z]{46,}\b")
_COLUMNS_MIN: Final = 40
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def print_peers(peers: Sequence[Mapping[str, Any]]) -> None:
    """Print peers as the control socket or an edge tells of them."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        print_table(_PIPE_COLUMNS, [_whole_row(peer) for peer in peers])
        return
    for line in terminal_lines(peers, console.width):
        click.echo(line)


def terminal_lines(peers: Sequence[Mapping[str, Any]], columns: int) -> Iterator[str]:
    """The lines for a terminal of so many columns; none is longer if there are at least 72."""
    rows = [_row(peer) for peer in peers]
    cells = [_COLUMNS, *rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    left = " " * (widths[0] + len(_GAP))
    room = max(columns, _COLUMNS_MIN) - len(left)
    yield _line(_COLUMNS, widths)
    for peer, row in zip(peers, rows, strict=True):
        figures, models = _line((*row[:-1], ""), widths), row[-1]
        whole = _line(row, widths)
        fits = _width(whole) <= columns
        yield whole if fits else figures
        details = [] if fits else [f"models: {models}"]
        for text in (*details, *_details(peer)):
            for piece in textwrap.wrap(text, room):
                yield f"{left}{piece}"


def duration(seconds: float) -> str:
    """A time as people say it: ``40 s``, ``3 min``, ``5 h``, ``12 d``."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def short_peer(peer: str) -> str:
    """The end of a peer id."""
    return f"…{peer[-_TAIL:]}" if len(peer) > _TAIL else peer


def _row(peer: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        short_peer(printable(str(peer.get("id", "")))),
        _roles(peer),
        peer.get("path") or "no link",
        _round_trip(peer),
        _since(peer),
        _models(peer),
    )


def _details(peer: Mapping[str, Any]) -> Iterator[str]:
    """Why it is this path, and how a provider is."""
    reason = _PEER_ID.sub(
        lambda found: short_peer(found[0]), printable(str(peer.get("reason") or ""))
    )
    address = peer.get("address") or ""
    if reason:
        yield f"{reason}, {address}" if address.startswith("/") else reason
    if not peer.get("status"):
        return
    how = [_status(peer), f"{peer.get('running', 0)} running", f"{peer.get('waiting', 0)} waiting"]
    how += [_engines(peer), printable(str(peer.get("region") or ""))]
    yield ", ".join(part for part in how if part)


def _whole_row(peer: Mapping[str, Any]) -> tuple[object, ...]:
    plain = (peer.get(name) for name in ("running", "waiting", "relay", "address"))
    return (
        peer.get("id", ""),
        _roles(peer),
        peer.get("path") or "-",
        _round_trip(peer) or "-",
        _since(peer) or "-",
        _models(peer) or "-",
        _status(peer) or "-",
        *("-" if value in (None, "") else value for value in plain),
        _engines(peer) or "-",
        peer.get("region") or "-",
        peer.get("reason") or "-",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for number, (text, width) in enumerate(zip(cells, widths, strict=True)):
        blanks = " " * (width - _width(text))
        padded.append(blanks + text if number == _RIGHT else text + blanks)
    return _GAP.join(padded).rstrip()


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _roles(peer: Mapping[str, Any]) -> str:
    """An edge tells of providers only, and does not say so."""
    roles = peer.get("roles")
    return ", ".join(roles) if roles else "provider" if roles is None else "-"


def _round_trip(peer: Mapping[str, Any]) -> str:
    milliseconds = peer.get("round_trip_ms")
    if milliseconds is None:
        return ""
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def _since(peer: Mapping[str, Any]) -> str:
    seconds = peer.get("since_seconds")
    return "" if seconds is None else duration(seconds)


def _models(peer: Mapping[str, Any]) -> str:
    states = peer.get("model_states") or {}
    names = [_with_state(model, states.get(model)) for model in peer.get("models") or ()]
    return ", ".join(names)


def _status(peer: Mapping[str, Any]) -> str:
    status = str(peer.get("status") or "")
    return status if peer.get("trusted", True) else f"{status} (not trusted)"


def _engines(peer: Mapping[str, Any]) -> str:
    engines = [
        _with_state(engine.get("label"), engine.get("state"))
        for engine in peer.get("engines") or ()
    ]
    return ", ".join(engines) or printable(str(peer.get("engine") or ""))


def _with_state(name: object, state: object) -> str:
    """The name, and its state if it is not the usual one."""
    text = str(name) if state in (None, "running") else f"{name} ({state})"
    return printable(text)
