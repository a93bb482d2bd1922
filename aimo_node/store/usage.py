"""The provider's ledger on disk: who used which model, how much, in which hour.

One row for each hour, peer and model, so that a busy provider writes a few rows a minute however
many requests there are. No prompt, no answer, nothing of a consumer behind a peer.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from aimo_node.dispatch.quota import DAY_SECONDS, Spent
from aimo_node.dispatch.usage import HOUR_SECONDS, UsageRow
from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.errors import AimoError, ConfigError

log = structlog.get_logger()

KEPT_DAYS: Final = 90
"""As long as anybody asks who used the GPU last quarter."""
ROWS_MAX: Final = 500_000
"""About 50 MB; the oldest go first. A hundred peers around the clock for half a year."""
VERSION: Final = 1
_DAMAGED: Final = ".damaged"
_BUSY_SECONDS: Final = 5.0
"""Somebody may look at the file with a tool."""

_PRIMARY_CODE: Final = 0xFF
"""Of SQLite's error codes; above it stands what they mean more exactly."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL,
    peer TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    first_used REAL NOT NULL,
    last_used REAL NOT NULL,
    PRIMARY KEY (hour, peer, model)
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (hour, peer, model) DO UPDATE SET
    requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    first_used = min(first_used, excluded.first_used),
    last_used = max(last_used, excluded.last_used)
"""
_SINCE: Final = """
SELECT peer, model, sum(requests), sum(prompt_tokens), sum(completion_tokens),
       min(first_used), max(last_used)
FROM usage WHERE hour >= ? GROUP BY peer, model ORDER BY max(last_used) DESC
"""
_SPENT: Final = """
SELECT peer, sum(requests), sum(prompt_tokens + completion_tokens)
FROM usage WHERE hour >= ? AND hour < ? GROUP BY peer
"""
_OLDEST_KEPT: Final = "SELECT hour FROM usage ORDER BY hour DESC LIMIT 1 OFFSET ?"


class UsageStoreError(AimoError):
    """The ledger cannot be read or written now."""


class UsageStore:
    """The ledger. One thread at a time; every change is one transaction."""

    def __init__(self, path: Path) -> None:
        """A damaged file is set aside: what was counted is lost, the node is not.

        Raises:
            ConfigError: the file cannot be opened or made.
        """
        self._path = path
        try:
            self._connection = _open(path)
        except sqlite3.OperationalError as error:
            raise ConfigError(f"cannot open {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self._connection = _begin_anew(path, error)

    def add(self, rows: Iterable[tuple[int, UsageRow]]) -> None:
        """Count rows in, each in its hour: all or, after an error or a crash, none.

        Raises:
            UsageStoreError: the disk takes nothing.
        """
        values = [
            (
                *(hour, row.peer, row.model, row.requests, row.prompt_tokens),
                *(row.completion_tokens, row.first_used, row.last_used),
            )
            for hour, row in rows
        ]
        with self._transaction() as connection:
            connection.executemany(_ADD, values)

    def prune(self, now: float) -> None:
        """Forget what is older than `KEPT_DAYS`, and the oldest of more than `ROWS_MAX`.

        Raises:
            UsageStoreError: the disk takes nothing.
        """
        oldest = int((now - KEPT_DAYS * DAY_SECONDS) // HOUR_SECONDS)
        with self._transaction() as connection:
            beyond = connection.execute(_OLDEST_KEPT, (ROWS_MAX,)).fetchone()
            if beyond is not None:
                oldest = max(oldest, beyond[0] + 1)
            connection.execute("DELETE FROM usage WHERE hour < ?", (oldest,))

    def since(self, moment: float) -> list[UsageRow]:
        """What each peer used of each model since the beginning of an hour, the latest first.

        Raises:
            UsageStoreError: it cannot be read.
        """
        with self._transaction() as connection:
            found = connection.execute(_SINCE, (int(moment // HOUR_SECONDS),)).fetchall()
        return [UsageRow(PeerId(row[0]), ModelName(row[1]), *row[2:]) for row in found]

    def spent_today(self, now: float) -> Mapping[PeerId, Spent]:
        """What each peer has used in this day of UTC.

        Raises:
            UsageStoreError: it cannot be read.
        """
        hours = DAY_SECONDS // HOUR_SECONDS
        first = int(now // DAY_SECONDS) * hours
        with self._transaction() as connection:
            found = connection.execute(_SPENT, (first, first + hours)).fetchall()
        return {PeerId(peer): Spent(requests, tokens) for peer, requests, tokens in found}

    def close(self) -> None:
        """Nothing may be called after it."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:
                yield self._connection
        except sqlite3.Error as error:
            if _is_damage(error):  # in a page that opening did not touch
                self._connection.close()
                self._connection = _begin_anew(self._path, error)
            raise UsageStoreError(f"{self._path}: {error}") from error


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether it will not go away by itself, as a full disk may."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & _PRIMARY_CODE
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _begin_anew(path: Path, error: sqlite3.Error) -> sqlite3.Connection:
    """Set a damaged ledger aside and begin another.

    Raises:
        ConfigError: that cannot be done.
    """
    try:
        aside = _set_aside(path)
        log.warning("usage.damaged", file=str(path), reason=str(error), kept=str(aside))
        return _open(path)
    except (OSError, sqlite3.Error) as problem:
        raise ConfigError(f"{path} is damaged, and cannot be set aside: {problem}") from problem


def _open(path: Path) -> sqlite3.Connection:
    # The file is made here and not by SQLite, which would let others read it.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from error
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        _check_version(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing that was committed; a power cut the last rows at most.
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise ConfigError(f"{path} is of a later version of this program ({version})")


def _set_aside(path: Path) -> Path:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path.replace(path.with_name(path.name + _DAMAGED))
