"""The how-to pages, followed to the letter: three machines, two of them behind NAT (root only).

What they have in place of systemd, Docker, ufw, git and apt-get is in `standins`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netlab.lab import lab, run, why_not
from tests.netlab.machine import Machine, machine, why_no_machine
from tests.netlab.pages import Follower

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
RELAY = PAGES / "relay-on-a-vps.md"
PROVIDER = PAGES / "provider-behind-a-home-router.md"
EDGE = PAGES / "edge-beside-an-app.md"
TOOLS = ("curl", "openssl", "nsenter", "unshare", "setpriv")
CLOSED = """
table inet host {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname "lo" accept
  }
}
"""
"""A public host lets nobody in until its owner has opened a port."""

# What the person who follows the pages has in place of their placeholders.
HAS = {"ADDRESS": "git@example.org:aimo-node.git"}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    reason = why_not(nat=True, tools=TOOLS) or why_no_machine(tmp_path)
    if reason:
        pytest.skip(reason)
    with lab(nat=True) as networks, ExitStack() as stack:
        made = {
            name: stack.enter_context(machine(name, networks.inside(name), tmp_path / name))
            for name in ("public", "home", "office")
        }
        run(*networks.inside("public"), "nft", "-f", "-", text=CLOSED)
        yield made


def test_relay_provider_and_edge_with_systemd(machines: dict[str, Machine]) -> None:
    with Follower(machines, HAS) as person:
        for page in (RELAY, PROVIDER, EDGE):
            person.follow(page)
    answers = [output for output in person.outputs if '"content":"7"' in output]
    assert len(answers) == 2, "by curl, without and with a key"
    assert "7" in (output.strip() for output in person.outputs), "by the SDK"
    assert "reservation.made" in machines["home"].run("journalctl -u aimo-provider")


def test_a_relay_with_compose(machines: dict[str, Machine]) -> None:
    """The other two pages go on from it in the same way, so they are not followed to their ends."""
    inside = "docker compose exec relay aimo"
    has = HAS | {
        f"aimo {command} --state /var/lib/aimo-relay": f"{inside} {command} --state /state"
        for command in ("invite", "peers list")
    }
    with Follower(machines, has) as person:
        person.follow(RELAY, "compose")
        person.follow(PROVIDER, until="4. See whether it is well")
        person.follow(EDGE, until="5. Keep it running")
    assert any('"content":"7"' in output for output in person.outputs)
