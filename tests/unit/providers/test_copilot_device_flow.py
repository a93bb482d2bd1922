"""The device flow: every answer GitHub can give, and what is done next."""

from __future__ import annotations

import pytest

from providers.copilot.device_flow import (
    BACK_OFF_SECONDS_MAX,
    EXTRA_SECONDS,
    DeviceCode,
    DeviceFlow,
    GaveUp,
    LoggedIn,
    Poll,
    Reason,
    Wait,
    read_device_code,
)
from providers.copilot.refusal import CopilotError
from providers.copilot.sites import AccountType, site_of

SITE = site_of(AccountType.INDIVIDUAL)
ANSWER = {
    "device_code": "device-secret",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://github.com/login/device",
    "expires_in": 900,
    "interval": 5,
}
PENDING = {"error": "authorization_pending"}


def flow_of(**changes: object) -> DeviceFlow:
    return DeviceFlow(read_device_code(200, ANSWER | changes, SITE), now=100.0)


def seconds(action: object) -> float:
    assert isinstance(action, Wait)
    return action.seconds - EXTRA_SECONDS


def test_a_login_is_shown_waited_for_and_done() -> None:
    flow = flow_of()
    assert flow.code.user_code == "WDJB-MJHT"
    assert seconds(flow.begin(100)) == 5
    assert flow.waited(105) == Poll()
    assert seconds(flow.answered(200, PENDING, 105)) == 5
    token = {"access_token": "ghu_secret", "token_type": "bearer", "scope": ""}
    assert flow.answered(200, token, 111) == LoggedIn("ghu_secret")


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("expired_token", Reason.EXPIRED, "expired"),
        ("token_expired", Reason.EXPIRED, "expired"),
        ("access_denied", Reason.DENIED, "cancelled in the browser"),
        ("incorrect_device_code", Reason.WRONG_DEVICE_CODE, "again"),
        ("unsupported_grant_type", Reason.WRONG_GRANT, "no login by device code"),
        ("incorrect_client_credentials", Reason.WRONG_CLIENT, "--client-id"),
        ("unauthorized_client", Reason.WRONG_CLIENT, "--client-id"),
        ("device_flow_disabled", Reason.DISABLED, "--client-id"),
        ("brand_new_error", Reason.UNKNOWN, "brand_new_error"),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_every_error_code_ends_the_login_with_its_sentence(
    status: int, code: str, reason: Reason, words: str
) -> None:
    """GitHub sends them with 200, the standard wants 400."""
    action = flow_of().answered(status, {"error": code, "error_description": "why"}, 105)
    assert isinstance(action, GaveUp)
    assert action.reason is reason
    assert words in action.message


def test_slow_down_lengthens_every_wait_that_follows() -> None:
    flow = flow_of()
    assert seconds(flow.answered(200, {"error": "slow_down"}, 105)) == 10
    assert seconds(flow.answered(200, {"error": "slow_down", "interval": 10}, 115)) == 15
    assert seconds(flow.answered(200, {"error": "slow_down", "interval": 40}, 130)) == 40
    assert seconds(flow.answered(200, PENDING, 170)) == 40, "it never shrinks again"


def test_a_code_that_expires_while_waiting_is_not_asked_for_again() -> None:
    flow = flow_of(expires_in=12)
    assert flow.seconds_left(104) == 8
    wait = flow.answered(200, PENDING, 110)
    assert wait == Wait(2), "no longer than the code lives"
    late = flow.waited(112)
    assert isinstance(late, GaveUp)
    assert late.reason is Reason.EXPIRED
    assert isinstance(flow.answered(200, PENDING, 112), GaveUp)
    assert isinstance(flow.unanswered(112), GaveUp)


@pytest.mark.parametrize("status", [429, 502, 503, 200])
def test_silence_and_foreign_pages_are_waited_out_twice_as_long_each_time(status: int) -> None:
    flow = flow_of()
    assert seconds(flow.unanswered(100)) == 10
    assert seconds(flow.answered(status, None, 110)) == 20
    assert seconds(flow.unanswered(130)) == 40
    assert seconds(flow.unanswered(170)) == BACK_OFF_SECONDS_MAX
    assert seconds(flow.answered(200, PENDING, 230)) == 5
    assert seconds(flow.unanswered(240)) == 10, "an answer ends the back-off"


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (200, {"error": "device_flow_disabled"}, "--client-id"),
        (404, {"error": "Not Found"}, "Not Found"),
        (404, None, "--client-id"),
        (429, None, "pause"),
        (503, None, "503"),
        (200, None, "no code"),
        (200, ANSWER | {"device_code": ""}, "no code"),
        (200, ANSWER | {"user_code": "AB\x1b[2J"}, "no code"),
        (200, ANSWER | {"user_code": 7}, "no code"),
        (200, ANSWER | {"verification_uri": "https://github.com.evil.example/"}, "another site"),
        (200, ANSWER | {"verification_uri": "http://github.com/login"}, "another site"),
        (200, ANSWER | {"verification_uri": None}, "another site"),
    ],
)
def test_a_login_that_cannot_begin_says_why(
    status: int, answer: dict[str, object] | None, words: str
) -> None:
    with pytest.raises(CopilotError, match=words):
        read_device_code(status, answer, SITE)


@pytest.mark.parametrize(
    ("interval", "expected"), [(None, 5), ("7", 5), (-1, 5), (True, 5), (0, 1), (8, 8)]
)
def test_the_interval_is_githubs_or_the_standards(interval: object, expected: float) -> None:
    assert flow_of(interval=interval).interval_seconds == expected


def test_neither_code_nor_token_is_shown_by_accident() -> None:
    code = read_device_code(200, ANSWER, SITE)
    assert isinstance(code, DeviceCode)
    assert "device-secret" not in repr(code)
    assert "ghu_secret" not in repr(LoggedIn("ghu_secret"))
