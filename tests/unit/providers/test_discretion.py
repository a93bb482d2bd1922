"""What an error may tell a consumer."""

import pytest

from aimo_node.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded
from providers.upstreams.discretion import Discretion


@pytest.mark.parametrize(
    "message", ["bad key sk-secret!", "sk-secret", "x" * 290 + "sk-sec", "cut here: sk-s"]
)
def test_key_is_not_quoted_whole_or_cut(message):
    with pytest.raises(EngineFailed) as caught, Discretion("sk-secret", {}):
        raise InvalidRequest(message)
    assert "sk-s" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_harmless_message_is_left_alone():
    error = InvalidRequest("temperature is too hot; ask", param="temperature")
    with pytest.raises(InvalidRequest) as caught, Discretion("sk-secret", {"m": "m"}):
        raise error
    assert caught.value is error


def test_upstreams_name_becomes_ours_and_the_rest_stays():
    error = ContextLengthExceeded("gpt-4o takes 10; `gpt-4o`, not gpt-4omni", param="messages")
    with pytest.raises(ContextLengthExceeded) as caught, Discretion("", {"gpt-4o": "fast"}):
        raise error
    assert caught.value.message == "fast takes 10; `fast`, not gpt-4omni"
    assert caught.value.param == "messages"


def test_advice_is_kept():
    with pytest.raises(Overloaded) as caught, Discretion("", {"own": "ours"}):
        raise Overloaded("own is busy", retry_after_seconds=3)
    assert (caught.value.message, caught.value.retry_after_seconds) == ("ours is busy", 3)


def test_other_errors_pass():
    with pytest.raises(KeyError), Discretion("secret", {}):
        raise KeyError("secret")
