"""A provider and an edge behind two routers meet while an answer streams (root only)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.http_client import echo_text
from tests.e2e.node_process import ROOT, NodeProcess, environment, wait_for
from tests.netlab.lab import PUBLIC, lab, run, why_not
from tests.netlab.long_consumer import TOKENS

CIRCUIT_SECONDS = 30.0
ENGINE = ("--engine", "echo", "--model", "echo")
CLOSED = """
table ip closed {
  chain forward { type filter hook forward priority -1; ip daddr 203.0.113.2 drop; }
}
"""
"""At the provider's router: what goes to the edge's router is lost, so no hole can be punched."""


def test_two_nodes_behind_routers_end_up_direct_and_the_answer_goes_on(tmp_path: Path) -> None:
    reason = why_not(nat=True)
    if reason:
        pytest.skip(reason)
    nodes: list[NodeProcess] = []
    with lab(nat=True) as networks:

        def start(where: str, name: str, command: str, *flags: str) -> NodeProcess:
            node = NodeProcess(
                name, command, *flags, folder=tmp_path, prefix=networks.inside(where)
            )
            nodes.append(node)
            return node

        try:
            run(*networks.inside("router1"), "nft", "-f", "-", text=CLOSED)
            join_file = tmp_path / "join"
            relay = start(
                *("public", "relay", "relay", "--join-file", str(join_file)),
                *("--announce", f"/ip4/{PUBLIC}/tcp/4001"),
            )
            relay.wait_ready()
            join = ("--join", f"@{join_file}")
            provider = start("home", "provider", "provider", *ENGINE, *join)
            edge = start("office", "edge", "edge", "--http", "127.0.0.1:0", *join)
            for node in nodes:
                node.wait_ready()
            wait_for(
                lambda: "path=circuit" in edge.log, CIRCUIT_SECONDS, "no circuit opens", *nodes
            )
            with consumer(networks.inside("office"), edge, tmp_path) as consuming:
                begun = json.loads(consuming.stdout.readline())
                assert begun["path"] == "circuit"
                run(*networks.inside("router1"), "nft", "delete", "table", "ip", "closed")
                found = json.loads(consuming.stdout.readline())
            assert found["errors"] == []
            assert found["was_running"], "the answer outlasts the change of its link"
            assert found["text"] == echo_text("Hi", TOKENS)
            assert (found["path"], found["again"]) == ("direct", echo_text("Hi", 200))
            wait_for(
                lambda: "circuit.closed" in relay.log, CIRCUIT_SECONDS, "the circuit stays", *nodes
            )
            assert "link.upgraded" in provider.log
        finally:
            for node in reversed(nodes):
                node.end()


def consumer(prefix: tuple[str, ...], edge: NodeProcess, folder: Path) -> "subprocess.Popen[str]":
    """A consumer beside the edge."""
    script = str(ROOT / "tests" / "netlab" / "long_consumer.py")
    return subprocess.Popen(
        [*prefix, sys.executable, script, str(edge.port), "echo"],
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )
