"""Writing down who used this provider: behind the requests, in a thread, once a second at most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import structlog
import trio

from aimo_node.dispatch.metering import Meter
from aimo_node.dispatch.usage import UsageRow
from aimo_node.errors import ConfigError
from aimo_node.store.usage import UsageStore, UsageStoreError

log = structlog.get_logger()

_Value = TypeVar("_Value")

USAGE_FILE: Final = "usage.sqlite3"
WRITE_SECONDS: Final = 1.0
"""Between two writes: what a node that is killed forgets."""
PRUNE_SECONDS: Final = 3_600.0
CLOSE_SECONDS: Final = 5.0
"""For the last write."""


class UsageKeeper:
    """Keeps the ledger of one provider. `run` is its life; `since` may be asked meanwhile.

    The file is made when there is something to write: a node that serves nobody needs none.
    """

    def __init__(self, state_folder: Path, meter: Meter) -> None:
        """Go on with what was used earlier today.

        Raises:
            ConfigError: there is a ledger that cannot be opened.
        """
        self._meter = meter
        self._file = state_folder / USAGE_FILE
        self._lock = trio.Lock()
        self._is_failing = False
        self._store = UsageStore(self._file) if self._file.exists() else None
        if self._store is not None:
            try:
                meter.quotas.restore(self._store.spent_today(meter.now), meter.now)
            except UsageStoreError as error:
                log.warning("usage.not_read", reason=str(error))

    async def run(self) -> None:
        """Write what is new, forget what is old; until cancelled, then write what is left."""
        pruned_at = -math.inf
        try:
            while True:
                await self._meter.news.wait()
                await self._write()
                if trio.current_time() - pruned_at >= PRUNE_SECONDS:
                    pruned_at = trio.current_time()
                    async with self._lock:
                        await self._do(UsageStore.prune, self._meter.now)
                await trio.sleep(WRITE_SECONDS)
        finally:
            with trio.move_on_after(CLOSE_SECONDS) as scope:
                scope.shield = True
                await self._write()
                async with self._lock:
                    if self._store is not None:
                        await trio.to_thread.run_sync(self._store.close)

    async def since(self, moment: float) -> Sequence[UsageRow]:
        """What each peer used of each model since `moment`, seconds since the epoch, to the hour.

        Raises:
            UsageStoreError, ConfigError: it cannot be read.
        """
        await self._write()
        async with self._lock:
            return await trio.to_thread.run_sync(lambda: self._opened().since(moment))

    async def _write(self) -> None:
        async with self._lock:
            rows = self._meter.book.take()
            if not rows:
                return
            self._meter.news = trio.Event()
            with trio.CancelScope(shield=True):  # they are nowhere else now
                if not await self._do(UsageStore.add, rows):
                    self._meter.book.put_back(rows)
                    self._meter.news.set()

    async def _do(self, change: Callable[[UsageStore, _Value], None], value: _Value) -> bool:
        """Change the ledger; False if that is not possible now."""
        try:
            await trio.to_thread.run_sync(lambda: change(self._opened(), value))
        except (UsageStoreError, ConfigError) as error:
            if not self._is_failing:
                log.warning("usage.not_written", reason=str(error))
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _opened(self) -> UsageStore:
        if self._store is None:
            self._store = UsageStore(self._file)
        return self._store
