"""The transition tables are closed, and every state leads to its end."""

from __future__ import annotations

import pytest

from aimo_node.protocol.states import (
    LINK_TRANSITIONS,
    REQUEST_TRANSITIONS,
    LinkState,
    RequestInput,
    RequestState,
    next_request_state,
)


def test_every_state_has_a_row() -> None:
    assert set(REQUEST_TRANSITIONS) == set(RequestState)
    assert set(LINK_TRANSITIONS) == set(LinkState)


@pytest.mark.parametrize("state", [s for s in RequestState if s is not RequestState.ENDED])
def test_a_request_can_be_ended_from_every_state(state: RequestState) -> None:
    assert next_request_state(state, RequestInput.ERROR) is RequestState.ENDED
    assert next_request_state(state, RequestInput.CANCEL) is RequestState.ENDED


@pytest.mark.parametrize("step", RequestInput)
def test_nothing_leads_out_of_the_end(step: RequestInput) -> None:
    assert next_request_state(RequestState.ENDED, step) is None


def test_chunks_and_a_whole_answer_do_not_mix() -> None:
    assert next_request_state(RequestState.RESPONDING, RequestInput.CHUNK) is None
    assert next_request_state(RequestState.RESPONDING, RequestInput.FINAL_CHUNK) is None
    assert next_request_state(RequestState.ANSWERING, RequestInput.LAST_BODY) is None
    assert next_request_state(RequestState.ANSWERING, RequestInput.RESPONSE) is None


@pytest.mark.parametrize("state", [s for s in LinkState if s is not LinkState.CLOSED])
def test_every_link_state_ends_when_the_connection_does(state: LinkState) -> None:
    assert LINK_TRANSITIONS[state]["connection lost"] is LinkState.CLOSED
