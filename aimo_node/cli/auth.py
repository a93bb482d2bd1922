"""`aimo auth`: log in to a service whose models this node may serve to its owner."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from aimo_node.cli.failure import Failure
from aimo_node.cli.flags import config_flag, load_from, state_flag

if TYPE_CHECKING:
    from aimo_node.assembly.copilot_login import DeviceCode, Login

LINE_SECONDS: Final = 60
"""How often the wait is told where nobody sees a line change."""

_Result = TypeVar("_Result")


@click.group("auth")
def command() -> None:
    """Log in to GitHub Copilot, see the login, log out.

    \b
    Example:
      aimo auth copilot
    """


@command.command("copilot")
@click.option(
    "--account-type",
    type=click.Choice(["individual", "business", "enterprise"], case_sensitive=False),
    help="Who pays for Copilot.  [default: individual; enterprise with --enterprise-url]",
)
@click.option(
    "--enterprise-url",
    metavar="DOMAIN",
    default="",
    help="A GitHub Enterprise in place of github.com, such as corp.ghe.com.",
)
@click.option(
    "--client-id",
    metavar="ID",
    default="",
    help="OAuth client to log in as.  [default: that of the editor's Copilot plug-in]",
)
@click.option(
    "--github-url",
    metavar="URL",
    default="",
    help="One address in place of GitHub's own; https, or http on loopback for tests.",
)
@state_flag
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.pass_context
def copilot(context: click.Context, /, *, as_json: bool, **flags: str | None) -> None:
    """Log in to GitHub Copilot with a code that you enter in a browser.

    The login is kept in the state folder, for this machine's user alone, and used by
    `aimo up --engine copilot`.

    \b
    Example:
      aimo auth copilot
      aimo auth copilot --enterprise-url corp.ghe.com
    """
    from aimo_node.assembly.copilot_login import LoginPlan, log_in

    if flags["github_url"] and flags["enterprise_url"]:
        raise click.UsageError("--github-url and --enterprise-url exclude each other")
    plan = LoginPlan(
        flags["account_type"] or "",
        flags["enterprise_url"] or "",
        flags["client_id"] or "",
        flags["github_url"] or "",
    )
    state = _state(context)
    screen = _Screen(as_json=as_json)
    try:
        login = ask_copilot(lambda: log_in(plan, state, show=screen.show, waiting=screen.wait))
    finally:
        screen.clear()
    screen.end(login)


@command.command("status")
@state_flag
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, /, *, as_json: bool, **_flags: object) -> int:
    """Show which login is kept; asks nobody. Exits with 1 if there is none.

    \b
    Example:
      aimo auth status
    """
    from aimo_node.assembly.copilot_login import login_of

    login = login_of(_state(context))
    if as_json:
        found = _facts(login) if login is not None else {}
        click.echo(json.dumps({"copilot": {"logged_in": login is not None} | found}))
    elif login is None:
        click.echo("copilot: not logged in; `aimo auth copilot` logs in")
    else:
        since = datetime.datetime.fromtimestamp(login.created_at, datetime.UTC)
        click.echo(f"copilot: logged in at {login.domain} ({login.account_type})")
        click.echo(f"  since   {since:%Y-%m-%d %H:%M} UTC")
        click.echo(f"  kept in {login.file}")
    return 0 if login is not None else 1


@command.command("logout")
@state_flag
@config_flag
@click.pass_context
def logout(context: click.Context, /, **_flags: object) -> None:
    """Forget the login on this machine.

    \b
    Example:
      aimo auth logout
    """
    from aimo_node.assembly.copilot_login import log_out

    if log_out(_state(context)):
        click.echo("copilot: logged out; GitHub lists what you allowed under")
        click.echo("  Settings > Applications, where it can be revoked for good")
    else:
        click.echo("copilot: nobody was logged in")


def ask_copilot(program: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run `program` in a trio loop of its own.

    Raises:
        Failure: GitHub refuses or cannot be reached.
        KeyboardInterrupt: also when a nursery had wrapped it.
    """
    import trio

    from aimo_node.assembly.copilot_login import CopilotError

    try:
        return trio.run(program)
    except CopilotError as error:
        raise Failure(str(error)) from error
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise


def _state(context: click.Context) -> Path:
    return load_from(context).settings.node.state


def _facts(login: Login) -> dict[str, Any]:
    return {
        "domain": login.domain,
        "account_type": login.account_type,
        "created_at": login.created_at,
        "file": login.file,
    }


class _Screen:
    """What the person sees: the code on stdout, the wait on stderr, in JSON if asked."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lives = sys.stderr.isatty() and not as_json
        self._told: int | None = None
        self._width = 0

    def show(self, code: DeviceCode) -> None:
        """The code has come."""
        if self._as_json:
            told = {
                "event": "code",
                "user_code": code.user_code,
                "verification_uri": code.verification_url,
                "expires_in": round(code.expires_seconds),
            }
            click.echo(json.dumps(told))
        else:
            click.echo(f"Open {code.verification_url} and enter the code {code.user_code}")
        sys.stdout.flush()

    def wait(self, seconds_left: float) -> None:
        """Still waiting."""
        minutes, seconds = divmod(round(seconds_left), 60)
        line = (
            f"waiting until you have entered the code in the browser, {minutes}:{seconds:02} left"
        )
        if self._lives:
            self._width = len(line)
            click.echo(f"\r{line}", nl=False, err=True)
        elif self._told is None or self._told - seconds_left >= LINE_SECONDS:
            self._told = round(seconds_left)
            click.echo(line, err=True)

    def clear(self) -> None:
        """The wait is over, one way or the other."""
        if self._width:
            click.echo(f"\r{' ' * self._width}\r", nl=False, err=True)

    def end(self, login: Login) -> None:
        """Logged in."""
        if login.warning:
            click.echo(f"aimo: {login.warning}", err=True)
        if self._as_json:
            click.echo(json.dumps({"event": "logged_in"} | _facts(login)))
        else:
            click.echo(f"logged in at {login.domain} ({login.account_type})")
            click.echo("Next:")
            click.echo("  aimo up --engine copilot")
            click.echo("  aimo check-usage")
