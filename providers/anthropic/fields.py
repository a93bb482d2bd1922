"""Reads fields of a canonical request by their path; a field of the wrong form is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from aimo_node.errors import InvalidRequest
from providers.anthropic.dialect import CACHE_CONTROL

_LIFETIMES: Final = frozenset({"5m", "1h"})


def mapping_at(path: str, value: object) -> Mapping[str, Any]:
    """`value`, an object.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object", param=path)
    return value


def text_at(path: str, value: object) -> str:
    """`value`, a string with something in it.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{path} must be a non-empty string", param=path)
    return value


def objects_at(path: str, value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a list of objects with their paths; none for null.

    Raises:
        InvalidRequest: it is no such list.
    """
    if value is None:
        return
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidRequest(f"{path} must be a list", param=path)
    for index, entry in enumerate(value):
        yield f"{path}[{index}]", mapping_at(f"{path}[{index}]", entry)


def extension_of(path: str, holder: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object ``aimo`` of `holder`, empty if there is none.

    Raises:
        InvalidRequest: it is something else.
    """
    value = holder.get("aimo")
    return {} if value is None else mapping_at(f"{path}.aimo".lstrip("."), value)


def cache_control_of(path: str, holder: Mapping[str, Any]) -> dict[str, Any]:
    """The cache breakpoint of `holder` as the field of a block, empty if there is none.

    Raises:
        InvalidRequest: not of the API's form.
    """
    value = extension_of(path, holder).get(CACHE_CONTROL)
    if value is None:
        return {}
    where = f"{path}.aimo.{CACHE_CONTROL}".lstrip(".")
    control = mapping_at(where, value)
    lifetime = control.get("ttl")
    if control.get("type") != "ephemeral" or not (lifetime is None or lifetime in _LIFETIMES):
        raise InvalidRequest(
            f'{where} must be {{"type": "ephemeral"}}, with "ttl" of 5m or 1h if any', param=where
        )
    kept = {"type": "ephemeral"} | ({"ttl": lifetime} if lifetime else {})
    return {"cache_control": kept}
