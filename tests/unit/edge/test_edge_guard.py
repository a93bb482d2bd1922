"""Who is let in by the head of a request alone."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from aimo_node.edge.guard import Guard
from aimo_node.edge.settings import EdgeSettings, allowed_hosts_for
from aimo_node.errors import (
    AuthenticationFailed,
    PayloadTooLarge,
    PermissionDenied,
    UnsupportedContentType,
)

KEY = b"sk-0123456789abcdef"
KEYED = frozenset({hashlib.sha256(KEY).digest()})


def scope(
    path: str = "/v1/models",
    method: str = "GET",
    kind: str = "http",
    client: str = "127.0.0.1",
    **headers: bytes,
) -> dict[str, Any]:
    given = {"host": b"localhost:8000", **headers}
    return {
        "type": kind,
        "method": method,
        "path": path,
        "client": (client, 5),
        "headers": [(name.replace("_", "-").encode(), value) for name, value in given.items()],
    }


@pytest.mark.parametrize(
    "host", [b"localhost", b"LocalHost:8000", b"127.0.0.1:1", b"[::1]:8000", b"[::1]"]
)
def test_loopback_names_are_served_on_any_port(host):
    assert Guard(EdgeSettings()).admit(scope(host=host)) == ""


@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"localhost.evil.example", b"127.0.0.1.nip.io", b"", b"[::2]", b"\xff"],
)
def test_other_names_are_refused(host):
    """A page whose name was rebound to 127.0.0.1 sends its own name."""
    with pytest.raises(PermissionDenied):
        Guard(EdgeSettings()).admit(scope(host=host))


def test_request_without_host_is_refused():
    request = scope()
    request["headers"] = []
    with pytest.raises(PermissionDenied):
        Guard(EdgeSettings()).admit(request)


def test_configured_name_is_served():
    guard = Guard(EdgeSettings(allowed_hosts=frozenset({"ai.example"})))
    guard.admit(scope(host=b"AI.example:443"))
    with pytest.raises(PermissionDenied):
        guard.admit(scope(host=b"other.example"))


def test_any_name_is_served_where_hosts_are_not_listed():
    Guard(EdgeSettings(allowed_hosts=None)).admit(scope(host=b"whatever.example"))


@pytest.mark.parametrize(
    ("bind", "names", "keyed", "behind_proxy", "expected"),
    [
        ("127.0.0.1", (), False, False, frozenset()),
        ("127.0.0.1", (), True, False, frozenset()),
        ("127.0.0.1", (), True, True, None),
        ("127.0.0.1", (), False, True, frozenset()),
        ("::1", ("Box.Example",), True, False, frozenset({"box.example"})),
        ("0.0.0.0", (), True, False, None),
        ("0.0.0.0", ("ai.example",), True, True, frozenset({"ai.example"})),
        ("0.0.0.0", (), False, False, frozenset()),
        ("192.168.1.5", (), True, False, None),
    ],
)
def test_hosts_are_open_only_where_every_request_needs_a_key(
    bind, names, keyed, behind_proxy, expected
):
    assert allowed_hosts_for(bind, names, keyed=keyed, behind_proxy=behind_proxy) == expected


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "origin",
    [b"https://evil.example", b"http://localhost:3000", b"http://localhost", b"null", b"", b"://"],
)
def test_foreign_origin_is_refused(kind, origin):
    with pytest.raises(PermissionDenied, match="origins"):
        Guard(EdgeSettings()).admit(scope(kind=kind, origin=origin))


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_own_origin_is_let_in(kind):
    Guard(EdgeSettings()).admit(scope(kind=kind, origin=b"http://LOCALHOST:8000"))


@pytest.mark.parametrize("content_type", [b"", b"text/plain", b"application/x-www-form-urlencoded"])
def test_post_needs_json(content_type):
    """These are what a form or a script on a page can send without the browser asking first."""
    with pytest.raises(UnsupportedContentType):
        Guard(EdgeSettings()).admit(scope(method="POST", content_type=content_type))


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"Application/JSON; charset=utf-8", b"application/json;"]
)
def test_post_with_json_is_let_in(content_type):
    Guard(EdgeSettings()).admit(scope(method="POST", content_type=content_type))


@pytest.mark.parametrize("length", [b"101", b"1" * 5000])
def test_body_over_the_limit_is_refused_by_its_declared_length(length):
    guard = Guard(EdgeSettings(body_bytes_max=100))
    head = scope(method="POST", content_type=b"application/json", content_length=length)
    with pytest.raises(PayloadTooLarge):
        guard.admit(head)


def test_body_at_the_limit_is_let_in():
    guard = Guard(EdgeSettings(body_bytes_max=100))
    guard.admit(scope(method="POST", content_type=b"application/json", content_length=b"100"))


@pytest.mark.parametrize(
    "credentials",
    [{"authorization": b"Bearer " + KEY}, {"authorization": b"bearer  " + KEY}, {"x_api_key": KEY}],
)
def test_key_is_taken_from_either_header(credentials):
    assert len(Guard(EdgeSettings(api_keys=KEYED)).admit(scope(**credentials))) == 16


@pytest.mark.parametrize(
    "credentials",
    [{}, {"authorization": b"Basic " + KEY}, {"authorization": KEY}, {"x_api_key": b""}],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/stream", "/unknown"])
def test_every_address_needs_a_key_once_there_are_keys(path, credentials):
    with pytest.raises(AuthenticationFailed):
        Guard(EdgeSettings(api_keys=KEYED)).admit(scope(path, **credentials))


@pytest.mark.parametrize("path", ["/v1/health", "/readyz"])
def test_health_needs_no_key(path):
    assert Guard(EdgeSettings(api_keys=KEYED)).admit(scope(path)) == ""


def test_metrics_are_for_loopback_or_a_key():
    guard = Guard(EdgeSettings(api_keys=KEYED))
    guard.admit(scope("/metrics"))
    guard.admit(scope("/metrics", client="192.0.2.1", x_api_key=KEY))
    with pytest.raises(AuthenticationFailed):
        guard.admit(scope("/metrics", client="192.0.2.1"))


def test_metrics_are_not_for_a_page_whose_name_was_rebound_to_loopback():
    guard = Guard(EdgeSettings(api_keys=KEYED, allowed_hosts=None))
    with pytest.raises(AuthenticationFailed):
        guard.admit(scope("/metrics", host=b"evil.example"))


def test_behind_a_proxy_nobody_counts_as_loopback():
    guard = Guard(EdgeSettings(api_keys=KEYED, behind_proxy=True))
    with pytest.raises(AuthenticationFailed):
        guard.admit(scope("/metrics"))
