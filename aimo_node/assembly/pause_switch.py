"""The owner's switch: a paused provider takes no requests, and stays paused after a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import structlog
import trio

from aimo_node.dispatch.hosting import HostedEngine
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.models import EngineState
from aimo_node.errors import ConfigError

log = structlog.get_logger()

PAUSED_FILE: Final = "paused.json"


class PauseSwitch:
    """Pauses and resumes a provider, and remembers it in the state folder.

    Attributes:
        service: what is paused.
        since: since when, in seconds since the epoch; 0 while it is not paused.
    """

    def __init__(self, service: ProviderService, state_folder: Path) -> None:
        self.service = service
        self.since = 0.0
        self._file = state_folder / PAUSED_FILE
        self._unloaded: list[HostedEngine] = []
        """By this switch, which has them loaded again."""
        self._lock = trio.Lock()

    def restore(self) -> None:
        """Be as before the restart; call it when all engines are added and none runs.

        A file that cannot be read means paused: it is there because the owner wants no requests.
        """
        if not self._file.exists():
            return
        try:
            saved = json.loads(self._file.read_text("utf-8"))
            self.since, unload = float(saved["since"]), saved["unload"] is True
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("pause.damaged", file=str(self._file), reason=str(error))
            self.since, unload = self.service.meter.now, False
        if unload:
            self._unloaded = list(self.service.engines)
            for engine in self._unloaded:
                engine.start_unloaded()
        self.service.pause()
        log.warning("provider.paused", hint="aimo provider resume", unloaded=unload)

    async def pause(self, *, unload: bool) -> None:
        """Take no new requests from now on; returns once that is certain.

        Args:
            unload: unload the engines as well, and wait for it.

        Raises:
            ConfigError: it is paused, but that cannot be remembered.
        """
        async with self._lock:
            if not self.service.paused:
                self.since = self.service.meter.now
                self.service.pause()
                log.info("provider.paused", running=self.service.running, unload=unload)
            self._remember(unload=unload or bool(self._unloaded))
            if unload:
                await self._unload()

    async def resume(self) -> None:
        """Take requests again, and load what was unloaded for the pause.

        Raises:
            ConfigError: it stays paused, since that cannot be forgotten.
        """
        async with self._lock:
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot remove {self._file}: {error.strerror}") from error
            unloaded, self._unloaded = self._unloaded, []
            for engine in unloaded:
                engine.want()
            if self.service.paused:
                self.since = 0.0
                self.service.resume()
                log.info("provider.resumed", engines_loading=len(unloaded))

    async def _unload(self) -> None:
        loaded = [one for one in self.service.engines if one.state is not EngineState.STOPPED]
        self._unloaded += [one for one in loaded if one not in self._unloaded]
        async with trio.open_nursery() as nursery:
            for engine in loaded:
                nursery.start_soon(engine.unload_now)

    def _remember(self, *, unload: bool) -> None:
        draft = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps({"since": self.since, "unload": unload}), "utf-8")
            draft.replace(self._file)
        except OSError as error:
            raise ConfigError(
                f"paused until the next start only: cannot write {self._file}: {error.strerror}"
            ) from error
        finally:
            draft.unlink(missing_ok=True)
