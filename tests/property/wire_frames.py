"""Hypothesis strategies for every frame, drawn from the bounds the frame classes declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from aimo_node.protocol import frames

FRAME_KINDS: tuple[type[Any], ...] = frames.Frame.__args__
SIZE_DRAWN_MAX = 80
"""Longer texts and lists say nothing new; the largest of each are golden vectors."""


def frames_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Frames of one class, each within its bounds."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return _struct(info)


def any_frame() -> st.SearchStrategy[Any]:
    """A frame of any class."""
    return st.one_of([frames_of(kind) for kind in FRAME_KINDS])


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    fields = {field.encode_name: _value(field.type) for field in info.fields}
    return st.fixed_dictionaries(fields).map(lambda values: info.cls(**values))


def _sizes(info: Any) -> tuple[int, int]:
    least = info.min_length or 0
    most = SIZE_DRAWN_MAX if info.max_length is None else min(info.max_length, SIZE_DRAWN_MAX)
    return least, max(least, most)


def _list(info: inspect.ListType) -> st.SearchStrategy[Any]:
    least, most = _sizes(info)
    return st.lists(_value(info.item_type), min_size=least, max_size=min(most, least + 4))


def _dict(info: inspect.DictType) -> st.SearchStrategy[Any]:
    most = min(_sizes(info)[1], 4)
    return st.dictionaries(_value(info.key_type), _value(info.value_type), max_size=most)


def _bytes(info: inspect.BytesType) -> st.SearchStrategy[Any]:
    least, most = _sizes(info)
    return st.binary(min_size=least, max_size=most)


def _text(info: inspect.StrType) -> st.SearchStrategy[Any]:
    least, most = _sizes(info)
    return st.text(st.characters(codec="utf-8"), min_size=least, max_size=most)


_BUILDERS: dict[type[Any], Callable[[Any], st.SearchStrategy[Any]]] = {
    inspect.IntType: lambda info: st.integers(info.ge, info.le),
    inspect.BoolType: lambda _info: st.booleans(),
    inspect.BytesType: _bytes,
    inspect.StrType: _text,
    inspect.ListType: _list,
    inspect.DictType: _dict,
    inspect.StructType: _struct,
}


def _value(info: Any) -> st.SearchStrategy[Any]:
    return _BUILDERS[type(info)](info)


def as_array(frame: msgspec.Struct) -> list[Any]:
    """The frame as the array that travels: its type number, then every field."""
    fields = [getattr(frame, name) for name in frame.__struct_fields__]
    return [type(frame).__struct_config__.tag, *fields]


def without_defaults(frame: msgspec.Struct) -> list[Any]:
    """The shortest array a sender may write: trailing defaults left out."""
    array, defaults = as_array(frame), list(frame.__struct_defaults__)
    while defaults and array[-1] == defaults[-1]:
        array.pop()
        defaults.pop()
    return array
