"""The address book on disk: whatever stands in the file, a node starts, and reads back its own."""

from __future__ import annotations

import contextlib
import json
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aimo_node.domain.ids import PeerId
from aimo_node.errors import ConfigError
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.relays.address_book import BOOK_FILE, AddressBook, decode_book, encode_book
from aimo_node.mesh.relays.book import KnownRelay, RelayBook

MESH = bytes(range(16))
PEERS = [KeyPair.from_seed(bytes([number]) * 32).peer_id for number in (1, 2, 3)]
OWN = KeyPair.from_seed(bytes(32)).peer_id


def address(peer: PeerId, port: int = 4001) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer}"


def row(**changes: Any) -> dict[str, Any]:
    whole = {"peer": PEERS[1], "addresses": [address(PEERS[1])]}
    return {**whole, "incarnation": 5, "revision": 1, "linked_ms": 9} | changes


def file(*rows: dict[str, Any], **changes: Any) -> bytes:
    whole = {"format": 1, "mesh": MESH.hex(), "relays": list(rows)}
    return json.dumps(whole | changes).encode()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


def restored(path: Path, mesh: bytes = MESH) -> RelayBook:
    book = RelayBook(OWN, {PEERS[0]: [address(PEERS[0])]})
    AddressBook(path, mesh, book).restore()
    return book


def learned(book: RelayBook) -> list[KnownRelay]:
    return [relay for relay in book if not relay.told]


def test_what_was_kept_is_known_in_the_next_life_and_in_that_mesh_only() -> None:
    with folder() as path:
        (path / BOOK_FILE).write_bytes(file(row()))
        assert learned(restored(path)) == [
            KnownRelay(PEERS[1], (), (address(PEERS[1]),), (5, 1), 9)
        ]
        assert learned(restored(path, bytes(32))) == []
        assert (path / BOOK_FILE).exists(), "of another mesh, but not damaged"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * 300_000 + file(row()),
        file(row(), format=2),
        file(row(), more=1),
        file(row(more=1)),
        file(row(peer="12D3KooW")),
        file(row(addresses=[])),
        file(row(addresses=[address(PEERS[2])])),
        file(row(addresses=["not an address"])),
        file(row(addresses=[address(PEERS[1]) + "\n"])),
        file(row(addresses=[f"{address(PEERS[2])}/p2p-circuit/p2p/{PEERS[1]}"])),
        file(row(addresses=[address(PEERS[1])] * 17)),
        file(row(incarnation=-1)),
        file(row(linked_ms=1e300)),
        file(*[row()] * 100),
        b'{"format": 1}',
        b"null",
    ],
    ids=lambda data: str(len(data)),
)
def test_a_damaged_book_is_set_aside_and_stops_nobody(data: bytes) -> None:
    with folder() as path:
        (path / BOOK_FILE).write_bytes(data)
        assert learned(restored(path)) == []
        assert not (path / BOOK_FILE).exists()
        assert (path / f"{BOOK_FILE}.damaged").read_bytes() == data


def test_a_book_that_cannot_be_read_stops_nobody() -> None:
    with folder() as path:
        (path / BOOK_FILE).mkdir()
        assert learned(restored(path)) == []


rows = st.fixed_dictionaries(
    {},
    optional={
        "peer": st.sampled_from(PEERS) | st.text(max_size=60),
        "addresses": st.lists(st.text(max_size=80) | st.sampled_from([address(PEERS[1])])),
        "incarnation": st.integers() | st.none(),
        "linked_ms": st.integers() | st.floats(),
    },
).map(lambda changes: row(**changes))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | st.lists(rows, max_size=4).map(lambda found: file(*found)))
@example(b'{"format":1,"mesh":"","relays":[{"peer":"\\ud800"}]}')
def test_any_bytes_give_relays_or_a_damaged_book(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        for relay in decode_book(data, MESH):
            assert all(text.endswith(f"/p2p/{relay.peer}") for text in relay.addresses)
            book = RelayBook(OWN, {})
            book.restore([relay])
            assert decode_book(encode_book(MESH, book), MESH) in ([relay], [])


async def test_a_change_is_written_whole_privately_and_not_at_once(autojump_clock) -> None:
    with folder() as path:
        book = RelayBook(OWN, {PEERS[0]: [address(PEERS[0])]})
        kept = AddressBook(path, MESH, book)
        kept.restore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.run)
            book.linked(PEERS[0], 77)
            await trio.sleep(1)
            assert not (path / BOOK_FILE).exists()
            await trio.sleep(2)
            assert stat.S_IMODE((path / BOOK_FILE).stat().st_mode) == 0o600
            book.linked(PEERS[0], 78)
            nursery.cancel_scope.cancel()
        (found,) = decode_book((path / BOOK_FILE).read_bytes(), MESH)
        assert (found.peer, found.linked_ms) == (PEERS[0], 78), "the last word before the end"
        assert [one.name for one in path.iterdir()] == [BOOK_FILE]
