"""Addresses of one GitHub and of its Copilot: github.com, GitHub Enterprise, or a test's own."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aimo_node.errors import ConfigError

PUBLIC_DOMAIN: Final = "github.com"
LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_HOST_NAME: Final = re.compile(
    r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}", re.IGNORECASE
)


class AccountType(enum.StrEnum):
    """Who pays for Copilot; it decides where its API is, unless GitHub says that itself."""

    INDIVIDUAL = "individual"
    BUSINESS = "business"
    ENTERPRISE = "enterprise"


_COPILOT: Final = {
    AccountType.INDIVIDUAL: "https://api.githubcopilot.com",
    AccountType.BUSINESS: "https://api.business.githubcopilot.com",
    AccountType.ENTERPRISE: "https://api.enterprise.githubcopilot.com",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where one GitHub is; each is scheme, host and port.

    Attributes:
        web: where people log in.
        api: its REST API.
        copilot: Copilot's API, unless the answer with the token names another.
    """

    web: str
    api: str
    copilot: str


def site_of(account_type: AccountType, domain: str = PUBLIC_DOMAIN, github_url: str = "") -> Site:
    """The addresses that belong to an account.

    Args:
        domain: ``github.com``, or that of a GitHub Enterprise such as ``corp.ghe.com``.
        github_url: one address in place of all of them.
    """
    if github_url:
        return Site(github_url, github_url, github_url)
    if domain == PUBLIC_DOMAIN:
        return Site("https://github.com", "https://api.github.com", _COPILOT[account_type])
    return Site(f"https://{domain}", f"https://api.{domain}", f"https://copilot-api.{domain}")


def read_domain(text: str) -> str:
    """The domain in ``corp.ghe.com`` or ``https://corp.ghe.com/``, in lower case.

    Raises:
        ConfigError: it is neither.
    """
    bare = text.strip().removeprefix("https://").rstrip("/").lower()
    if not _HOST_NAME.fullmatch(bare):
        raise ConfigError(f"--enterprise-url takes a domain such as corp.ghe.com, not {text!r}")
    return bare


def read_root(text: str) -> str:
    """Scheme, host and port of an address that may be sent a credential.

    Raises:
        ConfigError: no such address, or one that is neither encrypted nor on loopback.
    """
    root = _root_of(text)
    if not root:
        raise ConfigError(f"--github-url takes https://HOST or http://127.0.0.1:PORT, not {text!r}")
    return root


def copilot_root(site: Site, announced: object) -> str:
    """Where Copilot's API is: what the answer with the token says, if a token may go there."""
    root = _root_of(announced) if isinstance(announced, str) else ""
    if root.startswith("http:") and not site.api.startswith("http:"):
        return site.copilot
    return root or site.copilot


def same_host(url: str, root: str) -> bool:
    """Whether `url` leads to the host of `root`, just as well protected."""
    there = _root_of(url)
    return bool(there) and urlsplit(there).hostname == urlsplit(root).hostname


def _root_of(text: str) -> str:
    """Empty unless it is a plain URL whose host may be sent a credential."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if not host or parts.username or parts.password or not text.isascii() or " " in text:
        return ""
    if parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK_HOSTS):
        return f"{parts.scheme}://{parts.netloc}"
    return ""
