"""The authority's book: uses are counted, whoever asks at the same time, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import CERTIFICATE_MS, SKEW_MS, Grant, Invite, Refusal
from aimo_node.errors import ConfigError
from aimo_node.store.members import SqliteMemberStore

NOW = 1_800_000_000_000
MESH = bytes(32)
TASKS = 24


def invite(number: int = 1, uses: int = 1, roles: Role = Role.EDGE) -> Invite:
    return Invite(MESH, bytes([number]) * 16, roles, NOW + 60_000, uses)


def peer(number: int) -> PeerId:
    return PeerId(f"peer-{number}")


@pytest.fixture
def store(tmp_path: Path) -> SqliteMemberStore:
    return SqliteMemberStore(tmp_path / "members.sqlite")


def grants(results: list[Grant | Refusal]) -> list[Grant]:
    return [result for result in results if isinstance(result, Grant)]


@pytest.mark.parametrize("uses", [1, 5])
def test_of_many_who_redeem_at_once_exactly_as_many_win_as_it_has_uses(
    store: SqliteMemberStore, uses: int
) -> None:
    store.add_invite(invite(uses=uses), NOW)
    with ThreadPoolExecutor(TASKS) as pool:
        results = list(
            pool.map(lambda number: store.redeem(invite().id, peer(number), NOW), range(TASKS))
        )
    assert len(grants(results)) == uses
    assert len({grant.serial for grant in grants(results)}) == uses
    assert results.count(Refusal.INVITE_USED) == TASKS - uses
    assert len(store.members()) == uses


def test_an_invite_may_be_redeemed_again_by_who_used_it(store: SqliteMemberStore) -> None:
    """Its answer may have been lost on the way."""
    store.add_invite(invite(), NOW)
    first = store.redeem(invite().id, peer(1), NOW)
    again = store.redeem(invite().id, peer(1), NOW + 10)
    assert isinstance(first, Grant)
    assert isinstance(again, Grant)
    assert again.serial == first.serial + 1
    assert store.redeem(invite().id, peer(2), NOW) is Refusal.INVITE_USED


def test_an_invite_ends(store: SqliteMemberStore) -> None:
    store.add_invite(invite(), NOW)
    end = NOW + 60_000 + SKEW_MS
    assert store.redeem(invite().id, peer(1), end + 1) is Refusal.INVITE_EXPIRED
    assert isinstance(store.redeem(invite().id, peer(1), end), Grant)


def test_an_invite_nobody_made_is_none(store: SqliteMemberStore) -> None:
    assert store.redeem(bytes(16), peer(1), NOW) is Refusal.UNKNOWN_INVITE
    assert store.members() == []


def test_a_member_is_renewed_and_a_stranger_is_not(store: SqliteMemberStore) -> None:
    store.add_invite(invite(roles=Role.PROVIDER), NOW)
    assert store.renew(peer(1), NOW) is Refusal.NOT_A_MEMBER
    store.redeem(invite().id, peer(1), NOW)
    later = NOW + 3 * CERTIFICATE_MS
    renewed = store.renew(peer(1), later)
    assert renewed == Grant(Role.PROVIDER, 2, later, later + CERTIFICATE_MS)


def test_a_second_invite_adds_its_roles(store: SqliteMemberStore) -> None:
    store.add_invite(invite(1, roles=Role.PROVIDER), NOW)
    store.add_invite(invite(2, roles=Role.EDGE), NOW)
    store.redeem(invite(1).id, peer(1), NOW)
    both = store.redeem(invite(2).id, peer(1), NOW)
    assert isinstance(both, Grant)
    assert both.roles == Role.PROVIDER | Role.EDGE


def test_a_ban_ends_renewal_and_redeeming_until_it_is_lifted(store: SqliteMemberStore) -> None:
    store.add_invite(invite(uses=9), NOW)
    store.redeem(invite().id, peer(1), NOW)
    assert store.bans(NOW) == (0, frozenset())
    assert store.set_ban(peer(1), NOW, banned=True)
    assert not store.set_ban(peer(1), NOW, banned=True)
    version, banned = store.bans(NOW)
    assert banned == {peer(1)}
    assert store.renew(peer(1), NOW) is Refusal.BANNED
    assert store.redeem(invite().id, peer(1), NOW) is Refusal.BANNED
    assert store.set_ban(peer(1), NOW, banned=False)
    assert store.bans(NOW) == (version + 1, frozenset())
    assert isinstance(store.renew(peer(1), NOW), Grant)


def test_a_ban_is_told_only_while_a_certificate_runs(store: SqliteMemberStore) -> None:
    store.add_invite(invite(), NOW)
    store.redeem(invite().id, peer(1), NOW)
    store.set_ban(peer(1), NOW, banned=True)
    assert store.bans(NOW + CERTIFICATE_MS + SKEW_MS)[1] == {peer(1)}
    over = NOW + CERTIFICATE_MS + 3 * SKEW_MS
    assert store.bans(over)[1] == frozenset()
    assert store.renew(peer(1), over) is Refusal.BANNED


def test_a_ban_is_told_for_a_week_whatever_the_book_knows_of_certificates(
    store: SqliteMemberStore,
) -> None:
    """A book that was restored knows nothing of who joined or renewed after it was copied."""
    store.enrol(peer(1), Role.EDGE, NOW - 3 * CERTIFICATE_MS)
    for number in (1, 2):
        store.set_ban(peer(number), NOW, banned=True)
    assert store.bans(NOW + CERTIFICATE_MS + SKEW_MS)[1] == {peer(1), peer(2)}
    assert store.bans(NOW + CERTIFICATE_MS + 3 * SKEW_MS)[1] == frozenset()


def test_a_ban_of_somebody_who_never_joined_makes_no_member(store: SqliteMemberStore) -> None:
    store.set_ban(peer(1), NOW, banned=True)
    store.set_ban(peer(1), NOW, banned=False)
    assert store.members() == []
    assert store.renew(peer(1), NOW) is Refusal.NOT_A_MEMBER


def test_what_was_promised_outlives_the_process(tmp_path: Path) -> None:
    """The process is killed right after the answer."""
    path = tmp_path / "members.sqlite"
    SqliteMemberStore(path).add_invite(invite(), NOW)
    script = (
        "import os, sys; from pathlib import Path;"
        "from aimo_node.store.members import SqliteMemberStore;"
        f"SqliteMemberStore(Path(sys.argv[1])).redeem({invite().id!r}, 'peer-1', {NOW});"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    store = SqliteMemberStore(path)
    assert [one.peer for one in store.members()] == [peer(1)]
    assert store.redeem(invite().id, peer(2), NOW) is Refusal.INVITE_USED


def test_only_the_owner_may_read_the_book(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "members.sqlite"
    SqliteMemberStore(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_book_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match=r"members\.sqlite"):
        SqliteMemberStore(path)


def test_a_book_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    SqliteMemberStore(path)
    book = sqlite3.connect(path)
    book.execute("PRAGMA user_version = 2")
    book.close()
    with pytest.raises(ConfigError, match="newer aimo"):
        SqliteMemberStore(path)


def test_a_full_book_forgets_who_has_been_away_longest_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes without a disk of their own come back as others: else nobody could join any more."""
    monkeypatch.setattr("aimo_node.store.members.MEMBERS_MAX", 3)
    store = SqliteMemberStore(tmp_path / "members.sqlite")
    store.add_invite(invite(uses=9), NOW)
    for number in (1, 2, 3):
        assert isinstance(store.redeem(invite().id, peer(number), NOW + number), Grant)
    assert store.redeem(invite().id, peer(4), NOW + 5) is Refusal.FULL
    store.set_ban(peer(1), NOW + 6, banned=True)
    later = NOW + 3 * CERTIFICATE_MS
    assert isinstance(store.renew(peer(3), later), Grant)
    late = Invite(MESH, bytes([2]) * 16, Role.EDGE, later + 60_000, 9)
    store.add_invite(late, later)
    assert isinstance(store.redeem(late.id, peer(4), later), Grant)
    assert {one.peer for one in store.members()} == {peer(1), peer(3), peer(4)}
    assert store.renew(peer(2), later) is Refusal.NOT_A_MEMBER
    assert store.redeem(late.id, peer(2), later) is Refusal.FULL
    assert store.renew(peer(1), later) is Refusal.BANNED


def test_the_book_needs_no_newer_sqlite_than_servers_have(tmp_path: Path) -> None:
    """STRICT tables came with 3.37; Red Hat 9 and its kin have 3.34."""
    path = tmp_path / "members.sqlite"
    SqliteMemberStore(path)
    book = sqlite3.connect(path)
    made = " ".join(text for (text,) in book.execute("SELECT sql FROM sqlite_master") if text)
    book.close()
    assert "CREATE TABLE" in made
    assert "STRICT" not in made
