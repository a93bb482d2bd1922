"""`aimo peers` against relay, provider and edge: who is linked, over which path, and why."""

import json
import os
import pty
import re
import subprocess
import sys

import trio

from tests.e2e.http_client import ask, metric
from tests.e2e.node_process import NodeProcess, environment, eventually
from tests.e2e.recorder import recorded_ends

COMMAND_SECONDS = 60
ROUND_TRIP_SECONDS = 5.0


def command(node: NodeProcess, *flags: str) -> list[str]:
    state = ("--state", str(node.state), "--config", os.devnull)
    return [sys.executable, "-m", "aimo_node", "peers", *state, *flags]


async def peers_of(node: NodeProcess) -> dict[str, dict]:
    """What `aimo peers --json` says of whom, with every round trip measured."""
    found: dict[str, dict] = {}

    async def are_measured() -> bool:
        done = await trio.run_process(
            command(node, "--json"), capture_stdout=True, env=environment(node.state.parent)
        )
        answer = json.loads(done.stdout)
        assert answer["node"]["peer_id"] == node.peer_id
        found.update({peer["id"]: peer for peer in answer["data"]})
        return all(peer["round_trip_ms"] is not None for peer in found.values() if peer["linked"])

    await eventually(are_measured, ROUND_TRIP_SECONDS, "no round trip was measured", node)
    return found


def in_terminal(node: NodeProcess, columns: int) -> list[str]:
    """The lines that somebody sees in a terminal of so many columns."""
    main, side = pty.openpty()
    variables = {**environment(node.state.parent), "COLUMNS": str(columns), "TERM": "xterm"}
    done = subprocess.run(
        command(node), stdout=side, timeout=COMMAND_SECONDS, check=True, env=variables
    )
    os.close(side)
    shown = os.read(main, 65_536).decode()
    os.close(main)
    assert done.returncode == 0
    return shown.splitlines()


async def test_every_node_says_how_it_is_linked_and_why(own_mesh):
    relay = await own_mesh.relay().ready()
    async with recorded_ends(own_mesh, relay) as (recorder, provider, edge):
        at_edge = await peers_of(edge)
        assert set(at_edge) == {relay.peer_id, provider.peer_id}
        circuit, direct = at_edge[provider.peer_id], at_edge[relay.peer_id]
        assert (circuit["path"], circuit["relay"]) == ("circuit", relay.peer_id)
        assert circuit["reason"].startswith(f"circuit through {relay.peer_id}: ")
        assert (circuit["object"], circuit["models"]) == ("provider", ["echo"])
        assert (direct["path"], direct["reason"]) == ("direct", "dialled")
        assert (direct["object"], direct["roles"]) == ("peer", ["relay"])
        assert direct["address"] == f"/ip4/127.0.0.1/tcp/{recorder.port}"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", direct["since"])
        assert direct["since_seconds"] >= circuit["since_seconds"] >= 0

        at_relay = await peers_of(relay)
        assert set(at_relay) == {provider.peer_id, edge.peer_id}
        assert {peer["reason"] for peer in at_relay.values()} == {"dialled us"}

        at_provider = await peers_of(provider)
        assert set(at_provider) == {relay.peer_id, edge.peer_id}
        assert relay.peer_id in at_provider[edge.peer_id]["reason"]

        (view,) = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
        assert (view["path"], view["relay"]) == ("circuit", relay.peer_id)
        assert view["reason"].startswith(f"circuit through {relay.peer_id}: ")
        assert "address" not in view, "consumers of an edge need not know where its providers are"
        assert await metric(edge.port, "aimo_links_by_path", path="circuit") == 1

        lines = await trio.to_thread.run_sync(in_terminal, edge, 80)
        assert max(map(len, lines)) <= 80
        assert lines[0].split() == ["peer", "roles", "path", "round", "trip", "since", "models"]
        (row,) = [line for line in lines if line.startswith(f"…{provider.peer_id[-8:]}")]
        assert row.split()[1:3] == ["provider", "circuit"]
        why = lines[lines.index(row) + 1]
        assert why.startswith(f"{'':11}circuit through …{relay.peer_id[-8:]}: ")


async def test_without_a_node_it_says_so(tmp_path):
    done = await trio.run_process(
        [sys.executable, "-m", "aimo_node", "peers", "--state", str(tmp_path / "nobody")],
        check=False, capture_stderr=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    message = done.stderr.decode()
    assert message.startswith("aimo: no node runs with the state folder ")
    assert "--state DIR" in message
    assert message.count("\n") == 1
