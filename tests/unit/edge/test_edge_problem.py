"""Errors in the shape OpenAI's clients read."""

from __future__ import annotations

import json

import pytest
from werkzeug.exceptions import InternalServerError, MethodNotAllowed, NotFound

from aimo_node.edge.problem import problem_of, problem_of_http
from aimo_node.errors import (
    CODED_ERRORS,
    AuthenticationFailed,
    ContextLengthExceeded,
    Draining,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimitExceeded,
)


@pytest.mark.parametrize("error", CODED_ERRORS.values())
def test_every_error_has_a_status_and_the_four_fields(error):
    problem = problem_of(error("Why."))
    assert problem.status == error.http_status
    fields = json.loads(problem.body)["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    assert fields["message"] == "Why."


def test_field_at_fault_is_named():
    problem = problem_of(InvalidRequest("Bad.", param="messages[0].content"))
    assert problem.error == {
        "message": "Bad.",
        "type": "invalid_request_error",
        "param": "messages[0].content",
        "code": "invalid_request",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound, "model_not_found"),
        (ContextLengthExceeded, "context_length_exceeded"),
        (RateLimitExceeded, "rate_limit_exceeded"),
        (AuthenticationFailed, "invalid_api_key"),
    ],
)
def test_codes_are_those_that_openai_uses(error, code):
    assert problem_of(error("")).code == code


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Overloaded(""), "1"),
        (Draining(""), "5"),
        (Overloaded("", retry_after_seconds=2.1), "3"),
        (RateLimitExceeded("", retry_after_seconds=0), "1"),
    ],
)
def test_retry_after_is_whole_seconds_and_never_zero(error, seconds):
    assert dict(problem_of(error).headers)["retry-after"] == seconds


def test_error_event_is_one_event_whatever_the_message():
    event = problem_of(InvalidRequest("a\r\n\r\ndata: [DONE]\n\n")).event
    assert event.count(b"\n") == 2
    assert event.endswith(b"\n\n")


def test_unknown_address_and_method_have_the_same_shape():
    assert problem_of_http(NotFound(), "GET", "/x").message == "Unknown address: GET /x"
    refused = problem_of_http(MethodNotAllowed(["POST"]), "GET", "/x")
    assert refused.status == 405
    assert dict(refused.headers)["allow"] == "POST"


def test_a_bug_tells_the_consumer_nothing_of_itself():
    problem = problem_of_http(
        InternalServerError(original_exception=ValueError("secret")), "GET", "/"
    )
    assert problem.status == 500
    assert b"secret" not in problem.body
