"""What headers about rate limits mean, and for how long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.upstreams.rate_limits import (
    CLOSED_SECONDS_MAX,
    RateLimits,
    Window,
    read_windows,
    retry_after_seconds,
)

EPOCH = 1_700_000_000.0
"""14 November 2023, 22:13:20 UTC."""


def openai(kind, limit, remaining, reset):
    names = (f"x-ratelimit-{name}-{kind}" for name in ("limit", "remaining", "reset"))
    return dict(zip(names, (str(limit), str(remaining), reset), strict=True))


@pytest.mark.parametrize(
    ("headers", "window"),
    [
        (openai("requests", 60, 45, "1s"), Window(0.25, exhausted=False, reset_seconds=1)),
        (openai("tokens", 1000, 0, "6m0s"), Window(1, exhausted=True, reset_seconds=360)),
        (openai("tokens", 1000, 500, "1h2m3.5s"), Window(0.5, False, 3600)),
        (openai("tokens", 4, 1, "20ms"), Window(0.75, False, 0.02)),
        (
            {
                "ratelimit-limit": "100, 100;w=60",
                "ratelimit-remaining": "25",
                "ratelimit-reset": "9",
            },
            Window(0.75, False, 9),
        ),
        ({"ratelimit": "limit=100, remaining=50, reset=30"}, Window(0.5, False, 30)),
        (
            {"ratelimit": '"default";r=25;t=30', "ratelimit-policy": '"default";q=100;w=60'},
            Window(0.75, False, 30),
        ),
        ({"ratelimit": '"day";r=0;t=60'}, Window(1, True, 60)),
        (
            {
                "x-ratelimit-limit": "20",
                "x-ratelimit-remaining": "5",
                "x-ratelimit-reset": "1700000010000",
            },
            Window(0.75, False, 10),
        ),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000010"},
            Window(1, True, 10),
        ),
        (
            {
                "anthropic-ratelimit-input-tokens-limit": "100",
                "anthropic-ratelimit-input-tokens-remaining": "90",
                "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:13:50Z",
            },
            Window(0.1, False, 30),
        ),
        ({"x-ratelimit-remaining-requests": "7"}, Window(0, False, 0)),
        (openai("requests", 10, 20, "1s"), Window(0, False, 1)),
    ],
)
def test_every_dialect_is_read(headers, window):
    (found,) = read_windows(headers, EPOCH)
    assert found.used == pytest.approx(window.used)
    assert found.exhausted is window.exhausted
    assert found.reset_seconds == pytest.approx(window.reset_seconds)


def test_headers_about_something_else_are_no_limits():
    assert read_windows({"content-type": "text/plain", "x-request-id": "1"}, EPOCH) == []


@pytest.mark.parametrize("remaining", ["", "many", "-1", "1.5", "9" * 40])
def test_remaining_that_is_no_number_is_passed_over(remaining):
    assert read_windows({"x-ratelimit-remaining-requests": remaining}, EPOCH) == []


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
                "ratelimit",
                "ratelimit-policy",
                "retry-after",
                "retry-after-ms",
            ]
        ),
        st.text(max_size=30) | st.text("0123456789.smhd=r;,T:-Z", max_size=30),
    )
)
def test_any_headers_give_bounded_numbers(headers):
    """They are a stranger's."""
    limits = RateLimits()
    limits.note(429, headers, 5.0, EPOCH)
    assert 0 <= limits.share(5.0) <= 1
    assert 0 <= limits.closed_seconds(5.0) <= CLOSED_SECONDS_MAX
    assert limits.closed_seconds(5.0 + CLOSED_SECONDS_MAX) == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "999999"}, CLOSED_SECONDS_MAX),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0),
        ({"retry-after": "7", "retry-after-ms": "6500"}, 6.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, seconds):
    assert retry_after_seconds(headers, EPOCH) == seconds


def test_date_is_not_read_without_a_clock():
    assert retry_after_seconds({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}) is None


def test_share_is_that_of_the_tightest_limit_until_it_is_reset():
    limits = RateLimits()
    headers = openai("requests", 100, 80, "60s") | openai("tokens", 100, 10, "5s")
    limits.note(200, headers, 1000.0, EPOCH)
    assert limits.share(1000.0) == pytest.approx(0.9)
    assert limits.share(1005.0) == pytest.approx(0.2)
    assert limits.share(1060.0) == 0


def test_answer_that_says_nothing_changes_nothing():
    limits = RateLimits()
    limits.note(200, openai("requests", 100, 50, "60s"), 0.0, EPOCH)
    limits.note(200, {}, 1.0, EPOCH)
    assert limits.share(1.0) == pytest.approx(0.5)


def test_closed_from_the_last_request_left_until_the_reset():
    limits = RateLimits()
    limits.note(200, openai("requests", 100, 1, "60s"), 0.0, EPOCH)
    assert limits.closed_seconds(0.0) == 0
    limits.note(200, openai("requests", 100, 0, "58s"), 2.0, EPOCH)
    assert limits.closed_seconds(3.0) == pytest.approx(57)
    assert limits.share(3.0) == 1
    assert limits.closed_seconds(60.0) == 0
    assert limits.share(60.0) == 0


def test_nothing_left_without_a_reset_does_not_close():
    """Until when? Only the upstream could say; its 429 will."""
    limits = RateLimits()
    limits.note(200, {"x-ratelimit-remaining-requests": "0"}, 0.0, EPOCH)
    assert limits.closed_seconds(0.0) == 0


def test_429_closes_for_as_long_as_it_says():
    limits = RateLimits()
    limits.note(200, {"retry-after": "9"}, 0.0, EPOCH)
    assert limits.closed_seconds(0.0) == 0
    limits.note(429, {"retry-after": "7"}, 0.0, EPOCH)
    assert limits.closed_seconds(1.0) == 6
    assert limits.share(1.0) == 1


def test_success_that_was_under_way_does_not_open_what_429_closed():
    limits = RateLimits()
    limits.note(429, {"retry-after": "7"}, 0.0, EPOCH)
    limits.note(200, openai("requests", 100, 50, "60s"), 1.0, EPOCH)
    assert limits.closed_seconds(1.0) == 6


def test_shorter_reset_does_not_open_what_429_closed_for_longer():
    limits = RateLimits()
    limits.note(429, {"retry-after": "7"}, 0.0, EPOCH)
    limits.note(200, openai("requests", 100, 0, "2s"), 1.0, EPOCH)
    assert limits.closed_seconds(1.0) == 6
