"""Endpoints that were added to a running node: remembered in a file, served as engines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio
from pydantic import ValidationError

from aimo_node.assembly.engines import LABEL, EngineMaker, free_label
from aimo_node.config.provider import EngineSection
from aimo_node.dispatch.hosting import GIVEN_UP, HostedEngine
from aimo_node.dispatch.registration import NewEndpoint, RegisteredEndpoint
from aimo_node.dispatch.serving import ProviderService
from aimo_node.errors import ConfigError, InternalError, InvalidRequest, RequestError

log = structlog.get_logger()

REGISTERED_FILE: Final = "providers.json"
REGISTERED_MAX: Final = 16
"""As many as a configuration may have."""
SETTLE_SECONDS: Final = 10.0
"""How long adding one waits to see whether it works."""
START_SECONDS: Final = 5
"""How long an endpoint that is added may refuse connections."""
FILE_BYTES_MAX: Final = 1 << 20
ENGINES: Final = ("openai", "anthropic")
"""Those that only talk to a server; the others start programs, which the owner configures."""
KEY_FILE: Final = "key"


class RegisteredEndpoints:
    """See `EndpointRegistry`. Keys lie in a file of their own beside each engine's other files."""

    def __init__(self, service: ProviderService, maker: EngineMaker, state_folder: Path) -> None:
        self._service = service
        self._maker = maker
        self._file = state_folder / REGISTERED_FILE
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = trio.Lock()

    def read(self) -> Sequence[str]:
        """Read what was added in earlier runs; the labels, which nothing else may have.

        Raises:
            ConfigError: the file is damaged.
        """
        self._entries = _read(self._file)
        return tuple(self._entries)

    def restore(self) -> None:
        """Serve what was read.

        Raises:
            ConfigError: it cannot work.
        """
        for label, entry in self._entries.items():
            try:
                self._host(label, entry)
            except (ConfigError, ValidationError) as error:
                raise ConfigError(
                    f"{self._file}: the endpoint {label!r} cannot work: {_reason(error)};"
                    " remove it there"
                ) from error

    async def register(self, wanted: NewEndpoint) -> RegisteredEndpoint:
        """See `EndpointRegistry`."""
        async with self._lock:
            label = self._label(wanted)
            entry = _entry(wanted)
            with contextlib.ExitStack() as undo:  # whole or not at all, also if who asked leaves
                undo.callback(self._discard, label)
                try:
                    self._write_key(label, wanted.api_key)
                    engine = self._host(label, entry)
                except (ConfigError, ValidationError, OSError) as error:
                    raise _refusal(error) from error
                with trio.move_on_after(SETTLE_SECONDS):
                    await engine.settled.wait()
                if engine.state in GIVEN_UP:
                    raise InvalidRequest(engine.detail, param="endpoint")
                self._remember(self._entries | {label: entry})
                undo.pop_all()
            log.info("endpoint.registered", engine=label, endpoint=wanted.endpoint)
            return self._view(engine)

    async def remove(self, label: str) -> bool:
        """See `EndpointRegistry`."""
        async with self._lock:
            if label not in self._entries:
                return False
            self._remember({one: self._entries[one] for one in self._entries if one != label})
            self._discard(label)
            log.info("endpoint.removed", engine=label)
            return True

    def registered(self) -> Sequence[RegisteredEndpoint]:
        """See `EndpointRegistry`."""
        return [
            self._view(engine)
            for engine in self._service.engines
            if engine.plan.label in self._entries
        ]

    def _label(self, wanted: NewEndpoint) -> str:
        taken = [engine.plan.label for engine in self._service.engines]
        if len(self._entries) >= REGISTERED_MAX:
            raise InvalidRequest(f"there are {REGISTERED_MAX} endpoints already: remove one first")
        if wanted.engine not in ENGINES:
            raise InvalidRequest(f"engine must be one of {', '.join(ENGINES)}", param="engine")
        if not wanted.label:
            return free_label(wanted.engine, taken)
        if not LABEL.fullmatch(wanted.label):
            raise InvalidRequest(
                "label must be lower-case letters, digits, dots and dashes, at most 40",
                param="label",
            )
        if wanted.label in taken:
            raise InvalidRequest(f"there is an engine called {wanted.label!r}", param="label")
        return wanted.label

    def _host(self, label: str, entry: dict[str, Any]) -> HostedEngine:
        key_file = self._maker.folder(label) / KEY_FILE
        section = EngineSection.model_validate(
            entry | ({"api_key_file": key_file} if key_file.exists() else {})
        )
        return self._service.add(self._maker.plan(section, label, essential=False))

    def _write_key(self, label: str, key: str) -> None:
        """A key that an earlier endpoint of that label left is never sent to this one."""
        file = self._maker.folder(label) / KEY_FILE
        file.unlink(missing_ok=True)
        if key:
            _write_private(file, key.encode())

    def _discard(self, label: str) -> None:
        """Serve it no longer; of its folder goes what was put there here."""
        self._service.remove(label)
        folder = self._maker.folder(label)
        with contextlib.suppress(OSError):
            (folder / KEY_FILE).unlink(missing_ok=True)
            folder.rmdir()

    def _view(self, engine: HostedEngine) -> RegisteredEndpoint:
        entry = self._entries[engine.plan.label]
        return RegisteredEndpoint(
            label=engine.plan.label,
            engine=engine.plan.kind,
            endpoint=entry["endpoint"],
            state=engine.state.text,
            models=engine.info().models,
            detail=engine.detail,
        )

    def _remember(self, entries: dict[str, dict[str, Any]]) -> None:
        data = msgspec.json.format(msgspec.json.encode(entries))
        if len(data) > FILE_BYTES_MAX:
            raise InvalidRequest("the names of all endpoints and their models are too long")
        try:
            _write_private(self._file, data)
        except OSError as error:
            raise _refusal(error) from error
        self._entries = entries


def _entry(wanted: NewEndpoint) -> dict[str, Any]:
    """What is remembered: the keys of an engine's table, without those that were not given."""
    said: dict[str, Any] = {
        "model": wanted.model,
        "models": dict(wanted.models),
        "served_name": wanted.served_name,
        "requests_max": wanted.requests_max,
    }
    start = ["--start-seconds", str(START_SECONDS)]
    return {
        "name": wanted.engine,
        "endpoint": wanted.endpoint,
        "engine_args": start,
        **{name: value for name, value in said.items() if value},
    }


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        data = file.read_bytes()[:FILE_BYTES_MAX]
        entries = msgspec.json.decode(data, type=dict[str, dict[str, Any]])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; repair or remove it") from error
    for label in entries:
        if not LABEL.fullmatch(label):
            raise ConfigError(f"{file}: {label!r} is no label; repair or remove it")
    return entries


def _write_private(file: Path, data: bytes) -> None:
    """Write it whole or not at all, readable by its owner only."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(data)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _refusal(error: Exception) -> RequestError | InternalError:
    if isinstance(error, OSError):
        return InternalError(f"{error.filename} cannot be written: {error.strerror}")
    location = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
    return InvalidRequest(_reason(error), param=str(location[0]) if location else None)


def _reason(error: Exception) -> str:
    """One sentence, whoever raised it."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = "".join(f"{part}: " for part in first["loc"])
    return where + first["msg"].removeprefix("Value error, ")
