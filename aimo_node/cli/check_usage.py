"""`aimo check-usage`: what is left of the owner's Copilot quotas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from aimo_node.cli.auth import ask_copilot
from aimo_node.cli.flags import config_flag, load_from, state_flag
from aimo_node.cli.listing import print_table

if TYPE_CHECKING:
    from aimo_node.assembly.copilot_login import CopilotUsage, Quota

BAR_WIDTH: Final = 20


@click.command("check-usage")
@state_flag
@config_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, as_json: bool, **_flags: object) -> None:
    """Show Copilot's plan and quotas, and when they begin anew.

    \b
    Example:
      aimo check-usage
    """
    from aimo_node.assembly.copilot_login import usage_of

    state = load_from(context).settings.node.state
    usage = ask_copilot(lambda: usage_of(state))
    if as_json:
        click.echo(json.dumps(usage.to_json()))
        return
    _print(usage)


def _print(usage: CopilotUsage) -> None:
    if usage.login:
        click.echo(f"account  {usage.login}")
    click.echo(f"plan     {usage.plan or 'unknown'}")
    click.echo(f"renewed  {usage.reset_date or 'unknown'}")
    if not usage.quotas:
        click.echo("GitHub tells no quotas for this account")
        return
    click.echo()
    print_table(("quota", "used", "left"), [_row(quota) for quota in usage.quotas])


def _row(quota: Quota) -> tuple[str, str, str]:
    name = quota.name.replace("_", " ")
    if quota.unlimited:
        return name, "", "unlimited"
    used = 100 - quota.percent_remaining
    filled = round(BAR_WIDTH * used / 100)
    bar = f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {used:.0f} %"
    left = f"{quota.remaining:g} of {quota.entitlement:g}"
    if quota.overage:
        left += f", {quota.overage:g} beyond the plan"
    return name, bar, left
