"""What `docs/protocol/v1.md` has to say, made from the code: tables of fields, diagrams."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from msgspec import inspect

from aimo_node.protocol.states import (
    LINK_TRANSITIONS,
    REQUEST_TRANSITIONS,
    LinkState,
    RequestState,
)

_INTEGERS = {
    (0, 2**8 - 1): "u8",
    (0, 2**16 - 1): "u16",
    (0, 2**32 - 1): "u32",
    (0, 2**63 - 1): "u63",
}


def type_text(info: Any) -> str:
    """A field's type and bounds, as the tables show them."""
    match info:
        case inspect.IntType():
            text = _INTEGERS.get((info.ge, info.le), f"int {info.ge:,}–{info.le:,}")
        case inspect.BoolType():
            text = "bool"
        case inspect.BytesType():
            text = f"bin {_size(info)}"
        case inspect.StrType():
            text = f"str {_size(info)}"
        case inspect.ListType():
            text = f"array {_size(info)} of {type_text(info.item_type)}"
        case inspect.DictType():
            key, value = type_text(info.key_type), type_text(info.value_type)
            text = f"map {_size(info)} of {key} to {value}"
        case _:
            assert isinstance(info, inspect.StructType)
            text = info.cls.__name__
    return text


def _size(info: Any) -> str:
    least, most = info.min_length or 0, info.max_length
    if least == most:
        return f"{most:,}"
    return f"{least:,}–{most:,}" if least else f"≤ {most:,}"


def field_rows(kind: type[Any]) -> list[tuple[str, str, str, str]]:
    """Position, name, type and default of each field of a frame or part."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    first = 0 if info.tag is None else 1
    return [
        (str(first + place), f"`{field.encode_name}`", type_text(field.type), _default(field))
        for place, field in enumerate(info.fields)
    ]


def _default(field: inspect.Field) -> str:
    if field.required:
        return "–"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else "empty"


def _diagram(rows: list[tuple[str, str, str]]) -> str:
    """A Mermaid state diagram; several ways from one state to another share an arrow."""
    ways: dict[tuple[str, str], list[str]] = {}
    for start, label, end in rows:
        ways.setdefault((start, end), []).append(label)
    lines = ["stateDiagram-v2"]
    for (start, end), labels in ways.items():
        lines.append(f"    {start} --> {end}: " + " / ".join(labels))
    return "\n".join(lines)


def request_diagram() -> str:
    """The life of a request, drawn from its table."""
    rows = [
        (start.value, step.value, end.value)
        for start, steps in REQUEST_TRANSITIONS.items()
        for step, end in steps.items()
    ]
    return _with_ends(_diagram(rows), RequestState.SENT, RequestState.ENDED)


def link_diagram() -> str:
    """The life of a link, drawn from its table."""
    rows = [
        (start.value, step, end.value)
        for start, steps in LINK_TRANSITIONS.items()
        for step, end in steps.items()
    ]
    return _with_ends(_diagram(rows), LinkState.HELLO, LinkState.CLOSED)


def _with_ends(diagram: str, first: enum.Enum, last: enum.Enum) -> str:
    head, _, rest = diagram.partition("\n")
    return f"{head}\n    [*] --> {first.value}\n{rest}\n    {last.value} --> [*]"
