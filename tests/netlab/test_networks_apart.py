"""A provider at home and an edge in the office meet at a relay that both can dial (root only)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.http_client import echo_text
from tests.e2e.node_process import ROOT, NodeProcess, environment, wait_for
from tests.netlab.lab import lab, why_not

KNOWN_SECONDS = 30.0
GIVE_UP_SECONDS = 60.0
TOKENS = 200


@pytest.mark.parametrize("nat", [False, True], ids=["apart", "behind-nat"])
def test_an_answer_streams_between_networks_that_only_the_relay_is_in(nat, tmp_path: Path) -> None:
    reason = why_not(nat=nat)
    if reason:
        pytest.skip(reason)
    nodes: list[NodeProcess] = []
    with lab(nat=nat, nat_mode="random" if nat else "") as networks:

        def start(where: str, name: str, command: str, *flags: str) -> NodeProcess:
            node = NodeProcess(
                name, command, *flags, folder=tmp_path, prefix=networks.inside(where)
            )
            nodes.append(node)
            return node

        try:
            join_file = tmp_path / "join"
            public = [] if not networks.public else [f"/ip4/{networks.public}/tcp/4001"]
            announce = [part for address in public for part in ("--announce", address)]
            start("public", "relay", "relay", "--join-file", str(join_file), *announce).wait_ready()
            join = ("--join", f"@{join_file}")
            start("home", "provider", "provider", "--engine", "echo", "--model", "echo", *join)
            edge = start("office", "edge", "edge", "--http", "127.0.0.1:0", *join)
            for node in nodes:
                node.wait_ready()
            found: dict = {}

            def serves() -> bool:
                found.update(question(networks.inside("office"), edge, tmp_path))
                return found["known"]

            wait_for(serves, KNOWN_SECONDS, "the edge does not reach the provider", *nodes)
            assert found["errors"] == []
            assert (found["text"], found["done"]) == (echo_text("Hi", TOKENS), True)
            assert (found["path"], found["paths"]) == ("circuit", ["circuit"])
            if nat:
                # a port of its own for each connection: no hole can be punched, and all goes on
                gave_up = "hole punching failed 3 times"
                wait_for(lambda: gave_up in edge.log, GIVE_UP_SECONDS, "it goes on trying", *nodes)
                found.clear()
                assert serves()
                assert (found["text"], found["paths"]) == (echo_text("Hi", TOKENS), ["circuit"])
        finally:
            for node in reversed(nodes):
                node.end()


def question(prefix: tuple[str, ...], edge: NodeProcess, folder: Path) -> dict:
    """What a consumer beside the edge gets."""
    script = str(ROOT / "tests" / "netlab" / "consumer.py")
    command = [*prefix, sys.executable, script, str(edge.port), "echo", str(TOKENS)]
    done = subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
