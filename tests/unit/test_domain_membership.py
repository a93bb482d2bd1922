"""What makes a certificate good, and what is said when it is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.membership import (
    CERTIFICATE_MS,
    SKEW_MS,
    Certificate,
    Refusal,
    check_certificate,
    clock_problem,
)

NOW = 1_800_000_000_000
MESH = bytes(range(32))
PEER = PeerId("12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB")
OTHER = PeerId("12D3KooWCd3eX8r5ihRvzK7P1yPq5aakaBJhG5GNj18YTztPhoCa")
GOOD = Certificate(MESH, PEER, Role.PROVIDER | Role.EDGE, 1, NOW, NOW + CERTIFICATE_MS)


def problem(certificate: Certificate = GOOD, **changes: object) -> str | None:
    arguments = {"peer": PEER, "mesh": MESH, "roles": Role.EDGE, "now_ms": NOW} | changes
    return check_certificate(certificate, **arguments)  # type: ignore[arg-type]


def test_a_good_certificate_admits() -> None:
    assert problem() is None
    assert problem(roles=Role.NONE) is None


@pytest.mark.parametrize(
    ("certificate", "changes", "said"),
    [
        (GOOD, {"mesh": bytes(32)}, "another mesh"),
        (GOOD, {"peer": OTHER}, "another peer's"),
        (GOOD, {"banned": frozenset({PEER})}, "banned"),
        (GOOD, {"roles": Role.RELAY | Role.EDGE}, "not for the role relay$"),
        (GOOD, {"now_ms": NOW + CERTIFICATE_MS + SKEW_MS + 1}, "expired 30 s ago"),
        (GOOD, {"now_ms": NOW + 3 * CERTIFICATE_MS}, "expired 14 d ago"),
        (GOOD, {"now_ms": NOW - SKEW_MS - 1}, "30 s in the future, by the clock of whoever"),
    ],
)
def test_what_is_wrong_is_named(certificate: Certificate, changes: dict, said: str) -> None:
    found = problem(certificate, **changes)
    assert found is not None
    assert re.search(said, found), found


@given(st.integers(-SKEW_MS, CERTIFICATE_MS + SKEW_MS))
def test_clocks_may_be_half_a_minute_apart(elapsed_ms: int) -> None:
    assert problem(now_ms=NOW + elapsed_ms) is None


@given(st.integers(1, 10**15))
def test_more_is_refused_on_either_side(beyond_ms: int) -> None:
    assert "future" in str(problem(now_ms=NOW - SKEW_MS - beyond_ms))
    assert "expired" in str(problem(now_ms=NOW + CERTIFICATE_MS + SKEW_MS + beyond_ms))


@given(st.sampled_from(list(Role)), st.integers(0, 7))
def test_a_role_that_is_not_certified_is_never_admitted(role: Role, certified: int) -> None:
    certificate = replace(GOOD, roles=Role(certified))
    assert (problem(certificate, roles=role) is None) == (role in Role(certified))


def test_a_wrong_clock_is_named_with_its_side() -> None:
    assert clock_problem(NOW, NOW + SKEW_MS) is None
    assert clock_problem(NOW, NOW - SKEW_MS) is None
    assert (
        clock_problem(NOW, NOW + 90_000) == "this machine's clock is 90 s ahead of the authority's"
    )
    assert clock_problem(NOW, NOW - 31_000) == "this machine's clock is 31 s behind the authority's"


def test_half_of_a_life_is_left_for_an_authority_that_is_away() -> None:
    assert GOOD.renew_at_ms - NOW == CERTIFICATE_MS // 2


def test_only_being_busy_or_the_wrong_one_to_ask_may_change() -> None:
    assert {one for one in Refusal if not one.is_final} == {Refusal.BUSY, Refusal.NOT_AUTHORITY}
