"""Join strings: whatever is written can be read back, whatever is damaged is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.domain.join import (
    ADDRESS_CHARACTERS_MAX,
    ADDRESSES_MAX,
    INVITE_BYTES_MAX,
    JOIN_CHARACTERS_MAX,
    JOIN_PREFIX,
    SECRET_BYTES,
    JoinTarget,
    format_join,
    parse_join,
    peer_of_address,
)
from aimo_node.errors import ConfigError

PEER = "12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk"
ADDRESS = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"
SECRET = bytes(range(SECRET_BYTES))

addresses = st.builds(
    lambda host, port: f"/dns4/{host}/tcp/{port}/p2p/{PEER}",
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=100),
    st.integers(0, 65535),
)
lists = st.lists(addresses, min_size=1, max_size=ADDRESSES_MAX).map(tuple)
secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)
targets = st.builds(JoinTarget, lists, st.none() | secrets) | st.builds(
    JoinTarget, lists, st.none(), secrets, st.binary(max_size=INVITE_BYTES_MAX)
)


@given(targets)
def test_what_is_written_is_read_back(target: JoinTarget) -> None:
    text = format_join(target)
    assert text.startswith(JOIN_PREFIX)
    assert len(text) <= JOIN_CHARACTERS_MAX
    assert parse_join(text) == target


@given(targets, st.data())
def test_white_space_from_a_terminal_or_a_mail_is_ignored(
    target: JoinTarget, data: st.DataObject
) -> None:
    text = format_join(target)
    place = data.draw(st.integers(0, len(text)))
    assert parse_join(f" {text[:place]} \r\n\t{text[place:]}\n") == target


@given(targets, st.data())
def test_a_string_that_was_cut_off_is_refused(target: JoinTarget, data: st.DataObject) -> None:
    text = format_join(target)
    kept = data.draw(st.integers(len(JOIN_PREFIX), len(text) - 1))
    with pytest.raises(ConfigError, match=r"cut off|damaged"):
        parse_join(text[:kept])


@given(targets, st.data())
def test_a_mistyped_character_is_refused(target: JoinTarget, data: st.DataObject) -> None:
    text = format_join(target)
    # The last character may carry bits that base64 does not use.
    place = data.draw(st.integers(len(JOIN_PREFIX), len(text) - 2))
    other = data.draw(st.sampled_from("AZaz09-_").filter(lambda letter: letter != text[place]))
    with pytest.raises(ConfigError, match=r"cut off|damaged"):
        parse_join(text[:place] + other + text[place + 1 :])


@given(st.text(max_size=300) | st.text(max_size=300).map(lambda rest: JOIN_PREFIX + rest))
def test_any_text_gives_a_target_or_a_configuration_error(text: str) -> None:
    try:
        parse_join(text)
    except ConfigError:
        return


def test_a_multiaddr_with_a_peer_is_a_target_without_secret() -> None:
    assert parse_join(f" {ADDRESS}\n") == JoinTarget((ADDRESS,))


def test_a_circuit_address_leads_to_the_peer_behind_the_relay() -> None:
    other = "12D3KooWLbkJRkq7fqTYXNrnnzYsWYE2v3ZVBy9VBUT7zBnoJk2S"
    assert peer_of_address(f"{ADDRESS}/p2p-circuit/p2p/{other}") == other


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aimo:",
        "/ip4/192.0.2.7/tcp/4001",
        "/ip4/192.0.2.7/tcp/4001/p2p/nobody",
        f"/p2p/{PEER}",
        PEER,
        "http://192.0.2.7:4001",
        "a" * (JOIN_CHARACTERS_MAX + 1),
        "/" + "a" * ADDRESS_CHARACTERS_MAX + ADDRESS,
    ],
)
def test_what_leads_nowhere_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_join(text)


def test_a_string_of_a_later_version_says_so() -> None:
    """Somebody with an old release must learn that an upgrade helps, not that it is damaged."""
    text = "aimo:nAV1xZMDkMA"
    with pytest.raises(ConfigError, match="version 3"):
        parse_join(text)


def test_the_form_is_frozen() -> None:
    """Other implementations write this string, too."""
    text = format_join(JoinTarget((ADDRESS,), SECRET))
    assert text == (
        "aimo:GkXICpMBkdlQL2lwNC8xOTIuMC4yLjcvdGNwLzQwMDEvcDJwLzEyRDNLb29XUEdyZWFkTHg5bmZx"
        "b1FBclZWTUc5NVNHMkNwUXZiSkdxaXBNVlROTnUxemvEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    )


def test_a_target_that_could_not_be_written_cannot_be_made() -> None:
    with pytest.raises(ConfigError):
        JoinTarget(())
    with pytest.raises(ConfigError):
        JoinTarget((ADDRESS,) * (ADDRESSES_MAX + 1))
    with pytest.raises(ConfigError):
        JoinTarget((ADDRESS,), b"short")


def test_the_secret_is_in_no_repr_and_no_message() -> None:
    target = JoinTarget((ADDRESS,), SECRET)
    assert repr(SECRET) not in repr(target)
    text = format_join(target)
    with pytest.raises(ConfigError) as caught:
        parse_join(text[:-4])
    assert text[10:30] not in str(caught.value)
