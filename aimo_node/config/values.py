"""How single values of the configuration are read, and what they have to look like."""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from aimo_node.domain.ids import is_peer_id
from aimo_node.domain.join import parse_join
from aimo_node.errors import ConfigError

HTTP_OFF: Final = "off"
TRUST_MEMBERS: Final = "members"
LISTEN_OFF: Final = "off"

_TRUSTED_MAX: Final = 1_024
"""Providers that can be named one by one; a larger circle is a mesh of its own."""
_LIST_MAX: Final = 64
"""Longest list in a configuration; a longer one is a mistake."""

_SECONDS_OF_UNIT: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost may be any."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host_port(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it has another form, or the port is not 0–65535.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("expected HOST:PORT such as 127.0.0.1:8000, or off")
    if ":" in host and not text.startswith("["):
        raise ValueError("expected an IPv6 host in brackets, such as [::1]:8000")
    return host, int(port)


def _as_path(value: object) -> object:
    if isinstance(value, str):
        if not value:
            raise ValueError("expected a path")
        return Path(value).expanduser()
    return value


def _as_texts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _as_arguments(value: object) -> object:
    return tuple(shlex.split(value)) if isinstance(value, str) else _as_texts(value)


def _as_model_names(value: object) -> object:
    """``fast=gpt-4o-mini,gpt-4o``: what stands alone has the same name in the mesh."""
    if isinstance(value, str):
        pairs = (part.partition("=") for part in value.split(",") if part.strip())
        value = {name.strip(): (own or name).strip() for name, _, own in pairs}
    if isinstance(value, list):
        value = {name: name for name in value}
    if isinstance(value, dict) and not all((*value, *value.values())):
        raise ValueError("a model needs a name")
    return value


def seconds_of(text: str) -> float:
    """A duration such as ``90s``, ``10m``, ``2h`` or ``7d``, in seconds.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _SECONDS_OF_UNIT:
        raise ValueError("expected a duration such as 90s, 10m or 2h")
    return float(found[1]) * _SECONDS_OF_UNIT[found[2]]


def _as_seconds(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return seconds_of(value)


def _as_lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _check_http(text: str) -> str:
    if text and text != HTTP_OFF:
        split_host_port(text)
    return text


def _check_joins(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not text.startswith("@"):
            try:
                parse_join(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
    return texts


def _check_addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not text.startswith("/"):
            raise ValueError(f"expected a multiaddr such as /ip4/0.0.0.0/tcp/4001, got {text!r}")
    return texts


def _check_trust(texts: tuple[str, ...]) -> tuple[str, ...]:
    if texts == (TRUST_MEMBERS,):
        return texts
    wrong = next((text for text in texts if not is_peer_id(text)), None)
    if wrong is not None or not texts:
        what = "nothing" if wrong is None else repr(wrong[:80])
        raise ValueError(f"expected members, or peer ids such as 12D3KooW…, got {what}")
    return texts


def _check_listen(texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts if texts == (LISTEN_OFF,) else _check_addresses(texts)


PathValue = Annotated[Path, BeforeValidator(_as_path)]
OptionalPath = Annotated[Path | None, BeforeValidator(_as_path)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts), Field(max_length=_LIST_MAX)]
Joins = Annotated[Texts, AfterValidator(_check_joins)]
TrustedPeers = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_texts),
    Field(max_length=_TRUSTED_MAX),
    AfterValidator(_check_trust),
]
Addresses = Annotated[Texts, AfterValidator(_check_addresses)]
ListenAddresses = Annotated[Texts, AfterValidator(_check_listen)]
Arguments = Annotated[tuple[str, ...], BeforeValidator(_as_arguments), Field(max_length=_LIST_MAX)]
HttpAddress = Annotated[str, AfterValidator(_check_http)]
ModelNames = Annotated[
    dict[str, str], BeforeValidator(_as_model_names), Field(max_length=_LIST_MAX)
]
Duration = Annotated[float, BeforeValidator(_as_seconds)]
LowerCase = BeforeValidator(_as_lower)
