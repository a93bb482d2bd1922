"""The authority's book of members and invites in one SQLite file; each call is one transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import (
    BANS_MAX,
    CERTIFICATE_MS,
    SKEW_MS,
    Grant,
    Invite,
    Member,
    Refusal,
)
from aimo_node.errors import ConfigError

MEMBERS_MAX: Final = 20_000
"""As many peers as a node remembers addresses of. Of more the one is forgotten that has had no
certificate for the longest time, a week at least; bans are not forgotten."""
INVITES_MAX: Final = 10_000
"""Invites that have not expired."""
LOCK_SECONDS: Final = 5.0
"""How long one transaction may wait for another."""
VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE invites (
    id BLOB PRIMARY KEY, roles INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE redemptions (
    invite BLOB NOT NULL, peer TEXT NOT NULL, PRIMARY KEY (invite, peer));
CREATE TABLE members (
    peer TEXT PRIMARY KEY, roles INTEGER NOT NULL, joined_ms INTEGER NOT NULL,
    issued_ms INTEGER NOT NULL DEFAULT 0, expires_ms INTEGER NOT NULL DEFAULT 0,
    banned_ms INTEGER);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES ('serial', 0), ('bans', 0);
"""


class SqliteMemberStore:
    """See `ports.member_store.MemberStore`; may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Open the book, or begin it (mode 0600).

        Raises:
            ConfigError: it cannot be opened, or a newer aimo wrote it.
        """
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise ConfigError(f"cannot open the members in {path}: {error.strerror}") from error
        with self._transaction() as book:
            (version,) = book.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise ConfigError(f"{path} was written by a newer aimo: update this one")
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    book.execute(statement)
                book.execute(f"PRAGMA user_version = {VERSION}")

    def add_invite(self, invite: Invite, now_ms: int) -> None:
        """See `MemberStore.add_invite`; those that have expired are forgotten."""
        with self._transaction() as book:
            over = "expires_ms < ?", (now_ms - SKEW_MS,)
            book.execute(
                f"DELETE FROM redemptions WHERE invite IN (SELECT id FROM invites WHERE {over[0]})",  # noqa: S608 (a constant)
                over[1],
            )
            book.execute(f"DELETE FROM invites WHERE {over[0]}", over[1])  # noqa: S608 (a constant)
            if _count(book, "invites") >= INVITES_MAX:
                raise ConfigError(f"there are {INVITES_MAX} invites that have not expired")
            book.execute(
                "INSERT INTO invites (id, roles, expires_ms, uses) VALUES (?, ?, ?, ?)",
                (invite.id, int(invite.roles), invite.expires_ms, invite.uses),
            )

    def redeem(self, invite_id: bytes, peer: PeerId, now_ms: int) -> Grant | Refusal:
        """See `MemberStore.redeem`."""
        with self._transaction() as book:
            invite = book.execute(
                "SELECT roles, expires_ms, uses, used FROM invites WHERE id = ?", (invite_id,)
            ).fetchone()
            if invite is None:
                return Refusal.UNKNOWN_INVITE
            if _is_banned(book, peer):
                return Refusal.BANNED
            roles, expires_ms, uses, used = invite
            key = (invite_id, peer)
            again = "SELECT 1 FROM redemptions WHERE invite = ? AND peer = ?"
            if book.execute(again, key).fetchone() is None:
                if now_ms > expires_ms + SKEW_MS:
                    return Refusal.INVITE_EXPIRED
                if used >= uses:
                    return Refusal.INVITE_USED
                if not _make_room(book, peer, now_ms):
                    return Refusal.FULL
                book.execute("UPDATE invites SET used = used + 1 WHERE id = ?", (invite_id,))
                book.execute("INSERT INTO redemptions VALUES (?, ?)", key)
                _admit(book, peer, roles, now_ms)
            return _issue(book, peer, now_ms)

    def renew(self, peer: PeerId, now_ms: int) -> Grant | Refusal:
        """See `MemberStore.renew`."""
        with self._transaction() as book:
            if _is_banned(book, peer):
                return Refusal.BANNED
            found = book.execute("SELECT 1 FROM members WHERE peer = ?", (peer,)).fetchone()
            return Refusal.NOT_A_MEMBER if found is None else _issue(book, peer, now_ms)

    def enrol(self, peer: PeerId, roles: Role, now_ms: int) -> Grant:
        """See `MemberStore.enrol`."""
        with self._transaction() as book:
            _admit(book, peer, int(roles), now_ms)
            return _issue(book, peer, now_ms)

    def set_ban(self, peer: PeerId, now_ms: int, *, banned: bool) -> bool:
        """See `MemberStore.set_ban`."""
        with self._transaction() as book:
            if _is_banned(book, peer) == banned:
                return False
            if banned and len(_running_bans(book, now_ms)) >= BANS_MAX:
                raise ConfigError(
                    f"{BANS_MAX} bans of peers whose certificates may still run: wait"
                )
            if not _make_room(book, peer, now_ms):
                raise ConfigError(f"the book of members is full: {MEMBERS_MAX}")
            _admit(book, peer, 0, now_ms)
            since = now_ms if banned else None
            book.execute("UPDATE members SET banned_ms = ? WHERE peer = ?", (since, peer))
            _next(book, "bans")
            if not banned:  # one who was banned before it ever joined is a stranger again
                book.execute("DELETE FROM members WHERE peer = ? AND issued_ms = 0", (peer,))
            return True

    def catch_up(self, version: int, banned: frozenset[PeerId], now_ms: int) -> bool:
        """See `MemberStore.catch_up`. Bans of the book that the list lacks stay in force."""
        with self._transaction() as book:
            (own,) = book.execute("SELECT value FROM counters WHERE name = 'bans'").fetchone()
            if own >= version:
                return False
            for peer in sorted(banned):
                _admit(book, peer, 0, now_ms)
                book.execute(
                    "UPDATE members SET banned_ms = coalesce(banned_ms, ?),"
                    " expires_ms = max(expires_ms, ?) WHERE peer = ?",
                    (now_ms, now_ms + CERTIFICATE_MS, peer),
                )
            book.execute("UPDATE counters SET value = ? WHERE name = 'bans'", (version + 1,))
            return True

    def bans(self, now_ms: int) -> tuple[int, frozenset[PeerId]]:
        """See `MemberStore.bans`."""
        with self._transaction() as book:
            (version,) = book.execute("SELECT value FROM counters WHERE name = 'bans'").fetchone()
            return version, _running_bans(book, now_ms)

    def members(self) -> Sequence[Member]:
        """See `MemberStore.members`."""
        with self._transaction() as book:
            rows = book.execute(
                "SELECT peer, roles, joined_ms, issued_ms, expires_ms, banned_ms FROM members"
                " ORDER BY joined_ms, peer"
            ).fetchall()
        return [Member(PeerId(peer), Role(roles), *times) for peer, roles, *times in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block happens, or nothing; one block at a time, in all threads."""
        book: sqlite3.Connection | None = None
        try:
            book = sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None)
            book.execute("BEGIN IMMEDIATE")
            try:
                yield book
            except BaseException:
                book.execute("ROLLBACK")
                raise
            book.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigError(f"cannot use the members in {self._path}: {error}") from error
        finally:
            if book is not None:
                book.close()


def problem_of_book(path: Path) -> str | None:
    """Why a book cannot be used; None if it can, or if there is none. Changes nothing."""
    if not path.exists():
        return None
    try:
        name = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(name, uri=True)) as book:
            (found,) = book.execute("PRAGMA quick_check(1)").fetchone()
            book.execute("SELECT count(*) FROM members, invites, counters").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None if found == "ok" else str(found)


def _count(book: sqlite3.Connection, table: str) -> int:
    (count,) = book.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 (a constant)
    return int(count)


def _make_room(book: sqlite3.Connection, peer: PeerId, now_ms: int) -> bool:
    """Whether the book has room for `peer`; who has been away longest makes some if it is full."""
    known = book.execute("SELECT 1 FROM members WHERE peer = ?", (peer,)).fetchone()
    if known is not None or _count(book, "members") < MEMBERS_MAX:
        return True
    away = book.execute(
        "SELECT peer FROM members WHERE banned_ms IS NULL AND expires_ms < ?"
        " ORDER BY expires_ms LIMIT 1",
        (now_ms - CERTIFICATE_MS,),
    ).fetchone()
    if away is None:
        return False
    book.execute("DELETE FROM redemptions WHERE peer = ?", away)
    book.execute("DELETE FROM members WHERE peer = ?", away)
    return True


def _next(book: sqlite3.Connection, counter: str) -> int:
    book.execute("UPDATE counters SET value = value + 1 WHERE name = ?", (counter,))
    (value,) = book.execute("SELECT value FROM counters WHERE name = ?", (counter,)).fetchone()
    return int(value)


def _is_banned(book: sqlite3.Connection, peer: PeerId) -> bool:
    found = book.execute("SELECT banned_ms FROM members WHERE peer = ?", (peer,)).fetchone()
    return found is not None and found[0] is not None


def _running_bans(book: sqlite3.Connection, now_ms: int) -> frozenset[PeerId]:
    """Of peers that may have a certificate that runs: also one that this book knows nothing of, if
    it was restored from a backup."""
    rows = book.execute(
        "SELECT peer FROM members WHERE banned_ms IS NOT NULL"
        " AND max(expires_ms, banned_ms + ?) > ?",
        (CERTIFICATE_MS, now_ms - 2 * SKEW_MS),
    )
    return frozenset(PeerId(peer) for (peer,) in rows)


def _admit(book: sqlite3.Connection, peer: PeerId, roles: int, now_ms: int) -> None:
    """Make a peer a member, or add to the roles of one."""
    book.execute(
        "INSERT INTO members (peer, roles, joined_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (peer) DO UPDATE SET roles = roles | excluded.roles",
        (peer, roles, now_ms),
    )


def _issue(book: sqlite3.Connection, peer: PeerId, now_ms: int) -> Grant:
    serial, expires_ms = _next(book, "serial"), now_ms + CERTIFICATE_MS
    book.execute(
        "UPDATE members SET issued_ms = ?, expires_ms = ? WHERE peer = ?",
        (now_ms, expires_ms, peer),
    )
    (roles,) = book.execute("SELECT roles FROM members WHERE peer = ?", (peer,)).fetchone()
    return Grant(Role(roles), serial, now_ms, expires_ms)
