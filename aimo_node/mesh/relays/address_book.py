"""The address book on disk: the relays of this node's mesh, for the next start.

``relays.json`` in the state folder, mode 0600, replaced whole. It is read strictly, since what
stands there is dialled and believed; a damaged one is set aside.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
import trio
from msgspec import Meta

from aimo_node.domain.ids import PeerId, is_peer_id
from aimo_node.errors import ConfigError, RemoteProtocolError
from aimo_node.mesh.relays.book import LEARNED_MAX, KnownRelay, RelayBook
from aimo_node.protocol import limits
from aimo_node.protocol.relays import check_relay_address

log = structlog.get_logger()

BOOK_FILE: Final = "relays.json"
SAVE_SECONDS: Final = 2.0
"""From a change to the disk: what comes together is written once."""
BOOK_BYTES_MAX: Final = 262_144
"""Far above what `BOOK_ENTRIES_MAX` relays with all their addresses need."""
BOOK_ENTRIES_MAX: Final = 2 * LEARNED_MAX
"""Learned ones, and about as many that somebody names with ``--join``."""

_FORMAT: Final = 1
_DAMAGED: Final = ".damaged"
_Number = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """One relay in the file."""

    peer: Annotated[str, Meta(max_length=limits.PEER_ID_CHARS_MAX)]
    addresses: Annotated[
        list[Annotated[str, Meta(max_length=limits.ADDRESS_CHARS_MAX)]],
        Meta(min_length=1, max_length=limits.DESCRIPTOR_ADDRESSES_MAX),
    ]
    incarnation: _Number
    revision: _Number
    linked_ms: _Number


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file: format, name of the mesh in hexadecimal, relays."""

    format: int
    mesh: Annotated[str, Meta(max_length=2 * limits.DIGEST_BYTES_MAX)]
    relays: Annotated[list[_Row], Meta(max_length=BOOK_ENTRIES_MAX)]


def encode_book(mesh: bytes, book: RelayBook) -> bytes:
    """What is kept of a book: relays that were linked, or that made themselves known."""
    worth = [relay for relay in book if relay.linked_ms or relay.version != (0, 0)]
    worth.sort(key=lambda relay: -relay.linked_ms)
    rows = [
        _Row(
            relay.peer,
            _addresses(relay),
            *relay.version,
            relay.linked_ms,
        )
        for relay in worth
        if _addresses(relay)
    ]
    encoded = msgspec.json.encode(_File(_FORMAT, mesh.hex(), rows[:BOOK_ENTRIES_MAX]))
    return msgspec.json.format(encoded, indent=2) + b"\n"


def _addresses(relay: KnownRelay) -> list[str]:
    short = [one for one in relay.addresses if len(one) <= limits.ADDRESS_CHARS_MAX]
    return short[: limits.DESCRIPTOR_ADDRESSES_MAX]


def decode_book(data: bytes, mesh: bytes) -> list[KnownRelay]:
    """The relays in a file; none if it is of another mesh.

    Raises:
        ConfigError: it is damaged, or not one of ours.
    """
    if len(data) > BOOK_BYTES_MAX:
        raise ConfigError(f"it has more than {BOOK_BYTES_MAX} bytes")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"it is not understood: {error}") from error
    if file.format != _FORMAT:
        raise ConfigError(f"it is of format {file.format}, this aimo reads {_FORMAT}")
    if file.mesh != mesh.hex():
        return []
    return [_relay(row) for row in file.relays]


def _relay(row: _Row) -> KnownRelay:
    if not is_peer_id(row.peer):
        raise ConfigError(f"{row.peer!r} is no peer id")
    peer = PeerId(row.peer)
    try:
        for address in row.addresses:
            check_relay_address(peer, address)
    except RemoteProtocolError as error:
        raise ConfigError(str(error)) from error
    version = (row.incarnation, row.revision)
    addresses = tuple(dict.fromkeys(row.addresses))
    return KnownRelay(peer, (), addresses, version, row.linked_ms)


class AddressBook:
    """Reads the file into a `RelayBook` and keeps it up to date. `run` is its life."""

    def __init__(self, folder: Path, mesh: bytes, book: RelayBook) -> None:
        """`mesh`: the public name of the mesh; the book of another one is passed over."""
        self._path = folder / BOOK_FILE
        self._mesh = mesh
        self._book = book
        self._changed = trio.Event()
        self._complained = False

    def restore(self) -> None:
        """Take in what an earlier life knew. Never raises: a node can do without."""
        try:
            with self._path.open("rb") as file:
                data = file.read(BOOK_BYTES_MAX + 1)
            self._book.restore(decode_book(data, self._mesh))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("relays.not_read", path=str(self._path), reason=error.strerror)
        except ConfigError as error:
            with contextlib.suppress(OSError):
                self._path.replace(self._path.with_name(BOOK_FILE + _DAMAGED))
            log.warning("relays.damaged", path=str(self._path), reason=str(error))
        self._book.watch(self._note_change)

    async def run(self) -> None:
        """Write what has changed, now and then; at the end once more."""
        try:
            while True:
                await self._changed.wait()
                await trio.sleep(SAVE_SECONDS)
                self._save()
        finally:
            if self._changed.is_set():
                self._save()

    def _note_change(self) -> None:
        self._changed.set()

    def _save(self) -> None:
        """A few kilobytes, which take no longer than a frame: not worth a thread."""
        self._changed = trio.Event()
        data = encode_book(self._mesh, self._book)
        draft = self._path.with_name(f".{BOOK_FILE}.{os.getpid()}")
        try:
            draft.touch(mode=0o600)
            draft.write_bytes(data)
            draft.replace(self._path)
        except OSError as error:
            if not self._complained:
                log.warning("relays.not_kept", path=str(self._path), reason=error.strerror)
            self._complained = True
        else:
            self._complained = False
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
