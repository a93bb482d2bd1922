"""The owner's commands about members, against a control socket and the authority's real book."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from aimo_node.assembly.control_socket import ControlSocket, ask_node
from aimo_node.assembly.member_commands import member_commands
from aimo_node.cli import main as program
from aimo_node.domain.ids import PeerId, Role
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.membership.authority import Authority
from aimo_node.mesh.membership.credential import Credential
from aimo_node.mesh.membership.members import Members
from aimo_node.store.members import SqliteMemberStore

NOW = 1_800_000_000_000
OWN = KeyPair.from_seed(b"o" * 32).peer_id


@asynccontextmanager
async def authority(folder: Path) -> AsyncIterator[SqliteMemberStore]:
    """The commands as a relay with an authority takes them."""
    key = KeyPair.from_seed(b"k" * 32)
    store = SqliteMemberStore(folder / "members.sqlite")
    store.enrol(OWN, Role.RELAY, NOW)
    deciding = Authority(key, store, lambda: NOW)
    credential = Credential(key.public_key, OWN, Role.RELAY, folder, clock_ms=lambda: NOW)
    members = Members(credential, deciding, is_relay=True)
    commands = member_commands(deciding, members, lambda _: "aimo:…", frozenset)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(folder, commands).run)
        await trio.testing.wait_all_tasks_blocked()
        yield store
        nursery.cancel_scope.cancel()


async def said(
    capsys: pytest.CaptureFixture[str], folder: Path, *words: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command about the node in `folder`."""
    arguments = [*words, "--state", str(folder), "--config", "/dev/null"]
    code = await trio.to_thread.run_sync(program.run, arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


async def test_a_list_of_many_members_comes_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them take more than one line of the control socket may have."""
    count = 9_000
    async with authority(tmp_path):
        book = sqlite3.connect(tmp_path / "members.sqlite")
        rows = [(f"12D3KooW{number:044}", 7, NOW, NOW, NOW) for number in range(count)]
        with book:
            book.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, NULL)", rows)
        book.close()
        code, out, _ = await said(capsys, tmp_path, "peers", "list", "--json")
    assert code == 0
    assert len({member["id"] for member in json.loads(out)}) == count + 1


async def test_the_authoritys_own_node_is_not_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with authority(tmp_path):
        _, out, _ = await said(capsys, tmp_path, "peers", "list")
    assert "this node" in out
    assert "away" not in out


async def test_a_ban_of_somebody_who_never_joined_asks_for_a_second_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer id has no check digit: one that was mistyped would seem to be banned."""
    member = KeyPair.from_seed(b"m" * 32).peer_id
    mistyped = PeerId(member[:-1] + ("a" if member[-1] != "a" else "b"))
    async with authority(tmp_path) as store:
        store.enrol(member, Role.EDGE, NOW)
        _, _, known = await said(capsys, tmp_path, "peers", "ban", member)
        _, _, unknown = await said(capsys, tmp_path, "peers", "ban", mistyped)
    assert known == "banned\n"
    assert "never joined" in unknown


async def test_what_is_asked_of_the_wrong_node_is_said_in_words_of_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relay has no provider to pause."""
    async with authority(tmp_path):
        code, _, problem = await said(capsys, tmp_path, "provider", "pause")
    assert code == 1
    assert "is no provider" in problem


async def test_an_odd_place_in_the_list_is_refused(tmp_path: Path) -> None:
    async with authority(tmp_path):
        for odd in (-1, "x", None, True, 1.5):
            request = {"command": "members.list", "after": odd}
            with pytest.raises(Exception, match="place"):
                await trio.to_thread.run_sync(ask_node, tmp_path, request, 5.0)
