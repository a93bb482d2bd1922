"""The states of a link and of a request, and every transition there is, as tables.

`docs/protocol/v1.md` draws its diagrams from these tables.
"""

from __future__ import annotations

import enum
from typing import Final


class LinkState(enum.Enum):
    """Where a link is in its life."""

    HELLO = "hello"
    """Ours is on its way, theirs is not here: nothing else is read."""
    OPEN = "open"
    DRAINING = "draining"
    """One side said GoAway(Draining): running requests finish, no new ones."""
    CLOSED = "closed"


class RequestState(enum.Enum):
    """Where a request is, seen from either end."""

    SENT = "sent"
    ACCEPTED = "accepted"
    ANSWERING = "answering"
    """The first chunk has gone."""
    RESPONDING = "responding"
    """A Response whose body follows has gone."""
    ENDED = "ended"


class RequestInput(enum.Enum):
    """What moves a request on."""

    ACCEPTED = "Accepted"
    CHUNK = "StreamChunk"
    FINAL_CHUNK = "StreamChunk, final"
    RESPONSE = "Response"
    RESPONSE_HEAD = "Response, body follows"
    LAST_BODY = "Body, last"
    ERROR = "Error"
    CANCEL = "Cancel"


REQUEST_TRANSITIONS: Final[dict[RequestState, dict[RequestInput, RequestState]]] = {
    RequestState.SENT: {
        RequestInput.ACCEPTED: RequestState.ACCEPTED,
        RequestInput.ERROR: RequestState.ENDED,
        RequestInput.CANCEL: RequestState.ENDED,
    },
    RequestState.ACCEPTED: {
        RequestInput.CHUNK: RequestState.ANSWERING,
        RequestInput.FINAL_CHUNK: RequestState.ENDED,
        RequestInput.RESPONSE: RequestState.ENDED,
        RequestInput.RESPONSE_HEAD: RequestState.RESPONDING,
        RequestInput.ERROR: RequestState.ENDED,
        RequestInput.CANCEL: RequestState.ENDED,
    },
    RequestState.ANSWERING: {
        RequestInput.CHUNK: RequestState.ANSWERING,
        RequestInput.FINAL_CHUNK: RequestState.ENDED,
        RequestInput.ERROR: RequestState.ENDED,
        RequestInput.CANCEL: RequestState.ENDED,
    },
    RequestState.RESPONDING: {
        RequestInput.LAST_BODY: RequestState.ENDED,
        RequestInput.ERROR: RequestState.ENDED,
        RequestInput.CANCEL: RequestState.ENDED,
    },
    RequestState.ENDED: {},
}

LINK_TRANSITIONS: Final[dict[LinkState, dict[str, LinkState]]] = {
    LinkState.HELLO: {
        "Hello accepted": LinkState.OPEN,
        "Hello refused or late": LinkState.CLOSED,
        "GoAway": LinkState.CLOSED,
        "connection lost": LinkState.CLOSED,
    },
    LinkState.OPEN: {
        "GoAway(Draining), either side": LinkState.DRAINING,
        "GoAway, another code": LinkState.CLOSED,
        "protocol violation": LinkState.CLOSED,
        "12 s of silence": LinkState.CLOSED,
        "connection lost": LinkState.CLOSED,
    },
    LinkState.DRAINING: {
        "last request ended": LinkState.CLOSED,
        "GoAway, another code": LinkState.CLOSED,
        "protocol violation": LinkState.CLOSED,
        "12 s of silence": LinkState.CLOSED,
        "connection lost": LinkState.CLOSED,
    },
    LinkState.CLOSED: {},
}


def next_request_state(state: RequestState, step: RequestInput) -> RequestState | None:
    """Where `step` leads from `state`; None if it is not allowed there."""
    return REQUEST_TRANSITIONS[state].get(step)
