"""Whoever reads a relay's batches in order knows what the relay knows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import Descriptor, ModelInfo
from aimo_node.protocol import codec, limits
from aimo_node.protocol import directory as directory_module
from aimo_node.protocol.descriptors import describe
from aimo_node.protocol.directory import DirectoryBook
from aimo_node.protocol.frames import Descriptor as DescriptorFrame
from aimo_node.protocol.frames import Directory, Heartbeat

OWN = PeerId("relay")
PEERS = tuple(PeerId(f"provider {number}") for number in range(5))
SOURCES = (OWN, PeerId("other relay"))

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("describe"),
            st.sampled_from(SOURCES),
            st.sampled_from(PEERS),
            st.integers(1, 3),
            st.sampled_from(["tiny", "large"]),
        ),
        st.tuples(
            st.just("beat"), st.sampled_from(SOURCES), st.sampled_from(PEERS), st.integers(1, 50)
        ),
        st.tuples(st.just("leave"), st.sampled_from(SOURCES), st.sampled_from(PEERS)),
        st.tuples(st.just("tell")),
    ),
    max_size=60,
)


class Reader:
    """An edge that believes every batch."""

    def __init__(self) -> None:
        self.descriptors: dict[str, DescriptorFrame] = {}
        self.sequences: dict[str, int] = {}
        self.told = 0

    def read(self, book: DirectoryBook, models: frozenset[str]) -> None:
        revision = book.revision
        for batch in book.batches(self.told, models):
            self.take(batch)
        self.told = revision

    def take(self, batch: Directory) -> None:
        assert len(codec.encode(batch)) <= limits.FRAME_BYTES_MAX
        if batch.full:
            self.descriptors.clear()
            self.sequences.clear()
        for peer in batch.gone:
            self.descriptors.pop(peer, None)
            self.sequences.pop(peer, None)
        for frame in batch.descriptors:
            peer = str(codec.decode_part(frame.body, codec.DescriptorBody).peer_id)
            self.descriptors[peer] = frame
        for beat in batch.statuses:
            self.sequences[beat.node_id] = beat.seq


def signed(peer: PeerId, revision: int, model: str) -> tuple[DescriptorFrame, Descriptor]:
    described = Descriptor(peer, 1, (ModelInfo(ModelName(model)),), revision=revision)
    return DescriptorFrame(describe(described), bytes(64)), described


def play(book: DirectoryBook, step: tuple) -> None:
    match step:
        case ("describe", source, peer, revision, model):
            book.describe(source, *signed(peer, revision, model), 0.0)
        case ("beat", source, peer, sequence):
            book.beat(source, Heartbeat(peer, 1, sequence, 0, 0, 0, 0, 0), 0.0)
        case ("leave", source, peer):
            book.leave(source, peer)


@given(steps)
@settings(max_examples=300)
def test_a_reader_who_came_early_knows_what_one_who_came_late_knows(script: list[tuple]) -> None:
    book, early = DirectoryBook(OWN), Reader()
    for step in script:
        if step[0] == "tell":
            early.read(book, frozenset())
        else:
            play(book, step)
    early.read(book, frozenset())
    late = Reader()
    late.read(book, frozenset())
    assert early.descriptors == late.descriptors
    # one that left and came back between two batches never left for who reads them: the last that
    # was heard of it stays until its next heartbeat
    assert late.sequences.items() <= early.sequences.items()
    assert early.sequences.keys() <= late.descriptors.keys()
    assert len(early.descriptors) == len(book)


@given(steps)
def test_a_reader_who_wants_one_model_hears_of_no_other(script: list[tuple]) -> None:
    book = DirectoryBook(OWN)
    for step in script:
        play(book, step)
    for batch in book.batches(0, frozenset({"tiny"})):
        for frame in batch.descriptors:
            body = codec.decode_part(frame.body, codec.DescriptorBody)
            assert [model.name for model in body.models] == ["tiny"]


def test_a_provider_that_stops_serving_a_model_is_gone_for_who_wants_it() -> None:
    book, reader = DirectoryBook(OWN), Reader()
    book.describe(OWN, *signed(PEERS[0], 1, "tiny"), 0.0)
    reader.read(book, frozenset({"tiny"}))
    assert set(reader.descriptors) == {PEERS[0]}
    book.describe(OWN, *signed(PEERS[0], 2, "large"), 0.0)
    reader.read(book, frozenset({"tiny"}))
    assert not reader.descriptors


def test_a_reader_too_far_behind_starts_anew(monkeypatch) -> None:
    monkeypatch.setattr(directory_module, "GONE_MAX", 2)
    book, reader = DirectoryBook(OWN), Reader()
    book._gone = type(book._gone)(maxlen=2)
    for peer in PEERS:
        book.describe(OWN, *signed(peer, 1, "tiny"), 0.0)
    reader.read(book, frozenset())
    for peer in PEERS[:4]:
        book.leave(OWN, peer)
    reader.read(book, frozenset())
    assert set(reader.descriptors) == {PEERS[4]}


def test_what_a_silent_relay_reported_is_forgotten_and_what_is_linked_here_is_not() -> None:
    book = DirectoryBook(OWN)
    book.describe(SOURCES[1], *signed(PEERS[0], 1, "tiny"), 0.0)
    book.describe(OWN, *signed(PEERS[1], 1, "tiny"), 0.0)
    book.expire(directory_module.EXPIRY_SECONDS + 0.1)
    reader = Reader()
    reader.read(book, frozenset())
    assert set(reader.descriptors) == {PEERS[1]}


def test_a_large_directory_is_cut_into_batches_that_fit() -> None:
    book = DirectoryBook(OWN)
    for number in range(700):
        peer = PeerId(f"provider {number}")
        book.describe(OWN, *signed(peer, 1, "m" * 200), 0.0)
        book.beat(OWN, Heartbeat(peer, 1, 1, 0, 0, 0, 0, 0), 0.0)
    batches = list(book.batches(0))
    assert len(batches) > 2
    assert [batch.full for batch in batches] == [True] + [False] * (len(batches) - 1)
    assert sum(len(batch.descriptors) for batch in batches) == 700
    assert all(len(codec.encode(batch)) <= limits.FRAME_BYTES_MAX for batch in batches)
