"""`docs/protocol/v1.md` says what the code does: tables, numbers, diagrams, examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aimo_node.domain.ids import ContentType, Endpoint, FinishReason, PeerId, Role
from aimo_node.domain.models import EngineState, Feature, Health
from aimo_node.errors import CODED_ERRORS, CloseCode, ErrorCode
from aimo_node.protocol import codec, frames, limits
from aimo_node.protocol.frames import FrameType, Ping, StreamChunk
from aimo_node.protocol.handshake import mesh_id, mesh_proof
from tests.unit.protocol.wire_document import field_rows, link_diagram, request_diagram

PAGE = (Path(__file__).parents[3] / "docs" / "protocol" / "v1.md").read_text(encoding="utf-8")
PLAIN = " ".join(PAGE.split())
PARTS = [
    *("Limits", "UsageCount", "DescriptorBody", "Model", "Engine"),
    *("Relay", "RelayBody", "MessageFrame", "MessageBody"),
]
LIMIT_NAMES = [name for name in vars(limits) if name.isupper()]


def tables() -> list[list[list[str]]]:
    """Every table of the page: its rows, each a list of cells, without the head."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split(" |")] for line in block.split("\n")
        ]
        found.append(rows[2:-1])
    return found


def section(name: str) -> str:
    """The text under a heading, up to the next of the same depth or above."""
    match = re.search(
        rf"^(#+) {re.escape(name)}\n(.*?)(?=^#{{1,2}} |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert match is not None, f"no section {name!r}"
    text, depth = match[2], len(match[1])
    return re.split(rf"^#{{1,{depth}}} ", text, flags=re.MULTILINE)[0]


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


@pytest.mark.parametrize("name", [*PARTS, *FrameType.__members__])
def test_every_field_has_its_number_type_bounds_and_default(name: str) -> None:
    rows = [list(row) for row in field_rows(getattr(frames, name))]
    described = [table for table in tables() if [row[:4] for row in table] == rows]
    assert described, f"no table of {name} is {rows}"
    if name in FrameType.__members__:
        number = int(FrameType[name])
        assert described[0][0][1] in section(f"{name} ({number})")


def test_every_frame_type_has_its_number() -> None:
    listed = [[row[0], row[1]] for row in tables()[1]]
    assert listed == [
        [str(int(member)), f"[{member.name}](#{member.name.lower()}-{int(member)})"]
        for member in FrameType
    ]


def test_every_error_code_has_its_status_and_says_if_trying_elsewhere_helps() -> None:
    rows = [
        [
            str(int(code)),
            code.name,
            str(CODED_ERRORS[code].http_status),
            "yes" if CODED_ERRORS[code].retryable else "no",
        ]
        for code in ErrorCode
    ]
    assert rows in [[row[:4] for row in table] for table in tables()]


def test_every_close_code_has_its_number() -> None:
    rows = [[str(int(code)), code.name] for code in CloseCode]
    assert rows in [[row[:2] for row in table] for table in tables()]


def test_every_enumeration_is_listed() -> None:
    numbers = section("5. Numbers")
    endpoints = [[str(int(member)), member.name.lower()] for member in Endpoint]
    assert endpoints in [[row[:2] for row in table] for table in tables()]
    for members in (ContentType, FinishReason, Health, EngineState):
        listed = ", ".join(f"{int(member)} {member.name.lower()}" for member in members)
        assert listed in numbers
    roles = [role for role in Role if role]
    assert ", ".join(f"{int(role)} {role.names[0]}" for role in roles) in numbers
    assert ", ".join(f"`{feature}`" for feature in Feature) in " ".join(numbers.split())


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_every_limit_is_named_with_its_value(name: str) -> None:
    rows = [row for table in tables() for row in table if row[0] == f"`{name}`"]
    assert [row[1] for row in rows] == [shown(getattr(limits, name))]


def test_no_limit_is_named_that_is_none() -> None:
    named = {
        row[0].strip("`") for table in tables() for row in table if re.match("`[A-Z_]+`", row[0])
    }
    assert named == set(LIMIT_NAMES)


def test_every_large_number_in_the_text_is_a_limit() -> None:
    values = {getattr(limits, name) for name in LIMIT_NAMES}
    values |= {1_000}  # thousandths
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    numbers = {int(text.replace(",", "")) for text in re.findall(r"\b\d{1,3}(?:,\d{3})+\b", prose)}
    assert len(numbers) > 8
    assert numbers <= values


@pytest.mark.parametrize(
    "claim",
    [
        f"no Hello within {limits.HELLO_SECONDS:g} s",
        f"After {limits.PING_SECONDS:g} s of silence an end sends a Ping",
        f"After {limits.SUSPECT_SECONDS:g} s the peer is *suspect*",
        f"After {limits.DEAD_SECONDS:g} s the link ends",
        f"costs **its payload and {limits.CREDIT_FRAME_BYTES}**",
        f"n <= left or left >= {limits.CREDIT_LONE_BYTES:,}",
        f"left > {limits.CREDIT_WINDOW_BYTES_MAX:,}",
        f"That of an upload is {limits.CREDIT_INITIAL_BYTES:,}",
        f"A body of more than {limits.INLINE_BYTES_MAX:,} bytes travels in Body frames"
        f" of at most {limits.BODY_PIECE_BYTES:,} each",
        f"every {limits.DESCRIPTOR_SECONDS:g} s. It sends a Heartbeat every"
        f" {limits.HEARTBEAT_SECONDS:g} s",
        f"more than {limits.GOSSIP_OLDEST_SECONDS:g} s older or {limits.GOSSIP_NEWEST_SECONDS:g} s"
        " newer",
        f"a gossip message, of at most {limits.GOSSIP_BYTES_MAX:,} bytes",
        f"At most {limits.HEARTBEAT_BYTES_MAX} bytes",
        f"at most {limits.FRAME_BYTES_MAX:,}; before the peer's Hello was accepted, at most"
        f" {limits.HELLO_BYTES_MAX:,}",
    ],
)
def test_what_the_text_claims_is_what_the_code_does(claim: str) -> None:
    assert claim in PLAIN


def test_the_diagrams_are_drawn_from_the_tables() -> None:
    drawn = re.findall(r"```mermaid\n(stateDiagram.*?)\n```", PAGE, re.DOTALL)
    assert drawn == [link_diagram(), request_diagram()]


def test_the_examples_of_frames_are_right() -> None:
    assert codec.encode(Ping(5)).hex() == "00000003920b05"
    assert "`00000003 92 0b 05`" in PAGE
    line = re.search(r"^(0000001b .*)$", PAGE, re.MULTILINE)
    assert line is not None
    (read,) = codec.FrameReader().feed(bytes.fromhex(line[1]))
    assert isinstance(read, StreamChunk)
    assert (read.chunk_index, read.payload, read.is_final) == (0, b"Hel", False)
    assert len(bytes.fromhex(line[1])) == 31


def test_the_worked_example_of_a_proof_is_right() -> None:
    rows = {row[0]: row[1].strip("`") for table in tables() for row in table}
    secret, a, b = (
        bytes.fromhex(rows["mesh secret"]),
        PeerId(rows["peer A"]),
        PeerId(rows["peer B"]),
    )
    assert rows["`mesh`"] == mesh_id(secret).hex()
    assert rows["`proof` of A to B"] == mesh_proof(secret, a, b).hex()
    assert rows["`proof` of B to A"] == mesh_proof(secret, b, a).hex()


def test_every_reference_within_the_page_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
