"""Addresses of every kind of account, and which of them may be sent a credential."""

from __future__ import annotations

import pytest

from aimo_node.errors import ConfigError
from providers.copilot.sites import (
    AccountType,
    Site,
    copilot_root,
    read_domain,
    read_root,
    same_host,
    site_of,
)


@pytest.mark.parametrize(
    ("account_type", "copilot"),
    [
        (AccountType.INDIVIDUAL, "https://api.githubcopilot.com"),
        (AccountType.BUSINESS, "https://api.business.githubcopilot.com"),
        (AccountType.ENTERPRISE, "https://api.enterprise.githubcopilot.com"),
    ],
)
def test_github_com_has_an_api_for_each_account_type(
    account_type: AccountType, copilot: str
) -> None:
    assert site_of(account_type) == Site("https://github.com", "https://api.github.com", copilot)


@pytest.mark.parametrize("account_type", AccountType)
def test_an_enterprise_of_its_own_has_everything_under_its_domain(
    account_type: AccountType,
) -> None:
    assert site_of(account_type, read_domain("https://Corp.GHE.com/")) == Site(
        "https://corp.ghe.com", "https://api.corp.ghe.com", "https://copilot-api.corp.ghe.com"
    )


@pytest.mark.parametrize(
    "text",
    ["", "corp", "http://corp.ghe.com", "corp.ghe.com/path", "a b.com", "x@corp.com", "a..b"],
)
def test_what_is_no_domain_is_wrong_usage(text: str) -> None:
    with pytest.raises(ConfigError, match="--enterprise-url"):
        read_domain(text)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("https://git.example/x", "https://git.example"),
        ("https://git.example:8443", "https://git.example:8443"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://localhost:9/", "http://localhost:9"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_an_address_is_encrypted_or_on_this_machine(text: str, root: str) -> None:
    assert read_root(text) == root


@pytest.mark.parametrize(
    "text",
    [
        "http://git.example",
        "http://127.0.0.1.evil.example",
        "ftp://127.0.0.1",
        "https://",
        "https://user:word@git.example",
        "http://127.0.0.1:99999",
        "git.example",
    ],
)
def test_a_credential_goes_to_no_other_address(text: str) -> None:
    with pytest.raises(ConfigError, match="--github-url"):
        read_root(text)


@pytest.mark.parametrize(
    ("announced", "root"),
    [
        ("https://api.business.githubcopilot.com", "https://api.business.githubcopilot.com"),
        ("https://proxy.example/base/", "https://proxy.example"),
        (None, "https://api.githubcopilot.com"),
        ("", "https://api.githubcopilot.com"),
        (7, "https://api.githubcopilot.com"),
        ("http://api.githubcopilot.com", "https://api.githubcopilot.com"),
        ("http://127.0.0.1:80", "https://api.githubcopilot.com"),
    ],
)
def test_the_api_that_comes_with_the_token_wins_if_it_is_safe(announced: object, root: str) -> None:
    assert copilot_root(site_of(AccountType.INDIVIDUAL), announced) == root


def test_a_test_site_may_announce_loopback() -> None:
    site = site_of(AccountType.INDIVIDUAL, github_url="http://127.0.0.1:1")
    assert copilot_root(site, "http://127.0.0.1:2") == "http://127.0.0.1:2"
    assert copilot_root(site, None) == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://github.com/login/device", True),
        ("https://GitHub.com/login", True),
        ("https://github.com.evil.example/", False),
        ("https://github.com@evil.example/", False),
        ("javascript:alert(1)", False),
    ],
)
def test_only_githubs_own_pages_are_shown(url: str, same: bool) -> None:
    assert same_host(url, "https://github.com") is same
