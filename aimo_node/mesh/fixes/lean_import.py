"""Fault: importing libp2p drags in QUIC, mDNS, UPnP, ACME, a DNS stack and much else.

All of it is imported eagerly by `libp2p/__init__.py` and a few of its modules, and none of it
is used here: 44 MB and half a second. Inside `lean_imports()`

* the package files listed in `_BARE_PACKAGES` are not executed, only their submodules are;
* the modules listed in `_ABSENT` are replaced by placeholders.

Placeholders leave `sys.modules` at the end of the block, so nobody else ever sees them and the
real modules can still be imported later. A class taken from a placeholder can stand in an
annotation, an `except` or an `isinstance`, which is all that libp2p does with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Final

_BARE_PACKAGES: Final = frozenset(
    {
        "libp2p",
        "libp2p.network",
        "libp2p.relay",
        "libp2p.relay.circuit_v2",
        "libp2p.security",
        "libp2p.transport",
    }
)

_ABSENT: Final = (
    "Crypto",  # RSA keys: peers with other keys than Ed25519 are refused anyway
    "coincurve",  # secp256k1 keys, likewise
    "dns",  # names are resolved by the operating system before libp2p sees an address
    "libp2p.discovery.bootstrap",
    "libp2p.discovery.mdns",
    "libp2p.discovery.upnp",
    "libp2p.relay.circuit_v2.nat",
    "libp2p.security.tls",
    "libp2p.transport.quic",
)


class AbsentPart(Exception):  # noqa: N818 (it stands in for arbitrary names, errors among them)
    """Stands in for anything imported from a placeholder; an exception so `except` takes it."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"{type(self).__module__}.{type(self).__qualname__} is not loaded (lean_import.py), "
            f"so it has no {name!r}"
        )


class _Placeholder(ModuleType):
    """A module whose every public name is a class of its own."""

    def __getattr__(self, name: str) -> type[AbsentPart]:
        if name.startswith("__"):
            raise AttributeError(name)
        part = type(name, (AbsentPart,), {"__module__": self.__name__})
        setattr(self, name, part)
        return part


class _LeanFinder(MetaPathFinder, Loader):
    """Serves bare packages and placeholders; anything else goes the usual way."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if _is_absent(fullname):
            self.served.append(fullname)
            return ModuleSpec(fullname, self, is_package=True)
        if fullname in _BARE_PACKAGES:
            found = PathFinder.find_spec(fullname, path)
            if found is None:
                return None
            spec = ModuleSpec(fullname, self, origin=found.origin, is_package=True)
            spec.submodule_search_locations = found.submodule_search_locations
            return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _Placeholder(spec.name) if _is_absent(spec.name) else None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: that is the point."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import parts of libp2p in this block; what was imported before stays as it is."""
    finder = _LeanFinder()
    hidden = {name: module for name, module in sys.modules.items() if _is_absent(name)}
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.served:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _is_absent(name: str) -> bool:
    return name.startswith(_ABSENT) and any(
        name == absent or name.startswith(f"{absent}.") for absent in _ABSENT
    )
