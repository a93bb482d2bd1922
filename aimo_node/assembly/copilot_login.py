"""Logging in to Copilot and out again, for the command line; an engine is not needed for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from providers.copilot.credentials import (
    CREDENTIAL_FILE,
    Credential,
    load_credential,
    remove_credential,
    save_credential,
)
from providers.copilot.device_flow import PUBLIC_CLIENT_ID, DeviceCode, DeviceFlow
from providers.copilot.github import GitHub
from providers.copilot.refusal import CopilotError
from providers.copilot.sites import PUBLIC_DOMAIN, AccountType, read_domain, read_root
from providers.copilot.usage import CopilotUsage, Quota, read_usage

__all__ = [
    "CopilotError",
    "CopilotUsage",
    "DeviceCode",
    "Login",
    "LoginPlan",
    "Quota",
    "log_in",
    "log_out",
    "login_of",
    "usage_of",
]

TELL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """How to log in.

    Attributes:
        account_type: ``individual``, ``business`` or ``enterprise``; empty chooses by the domain.
        enterprise_url: domain of a GitHub Enterprise; empty is github.com.
        client_id: empty takes the public one of the editor's plug-in.
        github_url: one address in place of GitHub's; for tests.
    """

    account_type: str = ""
    enterprise_url: str = ""
    client_id: str = ""
    github_url: str = ""

    def credential(self, github_token: str) -> Credential:
        """What is kept once GitHub has given a token.

        Raises:
            ConfigError: the domain or the address cannot be one.
        """
        domain = read_domain(self.enterprise_url) if self.enterprise_url else PUBLIC_DOMAIN
        usual = AccountType.INDIVIDUAL if domain == PUBLIC_DOMAIN else AccountType.ENTERPRISE
        return Credential(
            github_token,
            AccountType(self.account_type) if self.account_type else usual,
            domain,
            read_root(self.github_url) if self.github_url else "",
            self.client_id or PUBLIC_CLIENT_ID,
            created_at=time.time_ns() // 1_000_000_000,
        )


@dataclass(frozen=True, slots=True)
class Login:
    """A login without its secret.

    Attributes:
        file: where it is kept.
        created_at: seconds since the epoch.
        warning: what could not be checked; empty if all is well.
    """

    file: str
    account_type: str
    domain: str
    created_at: int
    warning: str = ""


def credential_file(state: Path) -> Path:
    """Where the login of a node with this state folder is kept."""
    return state / CREDENTIAL_FILE


def login_of(state: Path) -> Login | None:
    """The login that is kept, None if there is none. Asks nobody.

    Raises:
        ConfigError: the file is damaged, or others may read it.
    """
    credential = load_credential(credential_file(state))
    return _shown(state, credential) if credential is not None else None


def log_out(state: Path) -> bool:
    """Forget the login; whether there was one.

    Raises:
        ConfigError: the file cannot be removed.
    """
    return remove_credential(credential_file(state))


async def log_in(
    plan: LoginPlan,
    state: Path,
    *,
    show: Callable[[DeviceCode], None],
    waiting: Callable[[float], None],
) -> Login:
    """Log in and keep the login in the state folder.

    Args:
        show: told the code and where to enter it, once.
        waiting: told how many seconds the code is still good, every second.

    Raises:
        ConfigError: the plan makes no sense, or the file cannot be written.
        CopilotError: no login, or one without a Copilot subscription; nothing is kept then.
    """
    draft = plan.credential("")
    async with GitHub(draft.site) as github:
        code = await github.device_code(draft.client_id)
        show(code)
        flow = DeviceFlow(code, trio.current_time())
        token = await _wait(github, flow, draft.client_id, waiting)
        warning = await _check(github, token)
    credential = plan.credential(token)
    save_credential(credential_file(state), credential)
    return _shown(state, credential, warning)


async def usage_of(state: Path) -> CopilotUsage:
    """What GitHub says about plan and quotas of the login that is kept.

    Raises:
        ConfigError: the login's file is damaged.
        CopilotError: nobody is logged in, or GitHub refuses or cannot be reached.
    """
    credential = load_credential(credential_file(state))
    if credential is None:
        raise CopilotError("nobody is logged in to Copilot: run `aimo auth copilot`", final=True)
    async with GitHub(credential.site) as github:
        return read_usage(await github.user(credential.github_token))


async def _wait(
    github: GitHub, flow: DeviceFlow, client_id: str, waiting: Callable[[float], None]
) -> str:
    """The person's part: GitHub is asked in one task, the time is told in another."""
    outcome: list[str | CopilotError] = []

    async def tell() -> None:
        while True:
            waiting(flow.seconds_left(trio.current_time()))
            await trio.sleep(TELL_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        try:
            outcome.append(await github.wait_for_login(flow, client_id))
        except CopilotError as error:  # raised below, outside of the nursery's group
            outcome.append(error)
        nursery.cancel_scope.cancel()
    found = outcome[0]
    if isinstance(found, CopilotError):
        raise found
    return found


async def _check(github: GitHub, github_token: str) -> str:
    """Whether the account has Copilot; a sentence if that could not be found out now.

    Raises:
        CopilotError: it has none.
    """
    try:
        await github.copilot_token(github_token)
    except CopilotError as error:
        if error.final:
            raise
        return f"the login is kept, but Copilot was not tried: {error}"
    return ""


def _shown(state: Path, credential: Credential, warning: str = "") -> Login:
    return Login(
        str(credential_file(state)),
        credential.account_type.value,
        credential.github_url or credential.domain,
        credential.created_at,
        warning,
    )
