"""A machine gets another address while its node runs: nobody has to do anything (root only)."""

from pathlib import Path

import pytest

from tests.e2e.node_process import NodeProcess, wait_for
from tests.netlab.lab import Lab, lab, run, why_not
from tests.netlab.test_networks_apart import question

KNOWN_SECONDS = 30.0
BACK_SECONDS = 10.0


def move(networks: Lab, old: str, new: str) -> None:
    """As when a laptop is carried to another room: what was connected is not told."""
    home = (*networks.inside("home"), "ip")
    run(*home, "addr", "del", f"{old}/24", "dev", "eth0")
    run(*home, "addr", "add", f"{new}/24", "dev", "eth0")
    run(*home, "route", "add", "default", "via", "10.1.0.1")


def test_a_provider_whose_address_changes_is_reached_again_in_ten_seconds(tmp_path: Path) -> None:
    reason = why_not(nat=False)
    if reason:
        pytest.skip(reason)
    nodes: list[NodeProcess] = []
    with lab(nat=False) as networks:

        def start(where: str, name: str, command: str, *flags: str) -> NodeProcess:
            prefix = networks.inside(where)
            node = NodeProcess(name, command, *flags, folder=tmp_path, prefix=prefix)
            nodes.append(node)
            return node

        try:
            join_file = tmp_path / "join"
            start("public", "relay", "relay", "--join-file", str(join_file)).wait_ready()
            join = ("--join", f"@{join_file}")
            echo = ("--engine", "echo", "--model", "echo")
            provider = start("home", "provider", "provider", *echo, *join)
            edge = start("public", "edge", "edge", "--http", "127.0.0.1:0", *join)
            for node in nodes:
                node.wait_ready()

            found: dict = {}

            def serves() -> bool:
                try:
                    found.update(question(networks.inside("public"), edge, tmp_path))
                    return found.get("done", False)
                except AssertionError:  # an answer that says that it is not there
                    return False

            wait_for(serves, KNOWN_SECONDS, "the edge does not reach the provider", *nodes)
            assert found["path"] == "direct"
            found.clear()
            move(networks, "10.1.0.2", "10.1.0.3")
            wait_for(lambda: "network.changed" in provider.log, BACK_SECONDS, "unnoticed", provider)
            wait_for(serves, BACK_SECONDS, "it is not reached at its new address", *nodes)
            assert "links.given_up" in provider.log
        finally:
            for node in reversed(nodes):
                node.end()
