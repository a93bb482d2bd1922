"""A relay dies while an answer streams between two private networks; a second one is there."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.http_client import echo_text
from tests.e2e.node_process import ROOT, NodeProcess, environment, wait_for
from tests.netlab.lab import PUBLIC, PUBLIC2, Lab, lab, why_not
from tests.netlab.test_networks_apart import question

REHOME_SECONDS = 10.0
KNOWN_SECONDS = 30.0
TOKENS = 300
DELAY_MS = 20


class TwoRelays:
    """Provider at home and edge in the office, each with the join strings of two relays."""

    def __init__(self, networks: Lab, folder: Path) -> None:
        self.networks = networks
        self.folder = folder
        self.nodes: list[NodeProcess] = []
        files = [folder / "join1", folder / "join2"]
        self.relays = []
        for where, address, file in zip(
            ("public", "public2"), (PUBLIC, PUBLIC2), files, strict=True
        ):
            announce = ("--announce", f"/ip4/{address}/tcp/4001", "--join-file", str(file))
            join = ("--join", f"@{files[0]}") if self.relays else ()
            self.relays.append(self._start(where, where, "relay", *announce, *join))
        joins = [part for file in files for part in ("--join", f"@{file}")]
        engine = ("--engine", "echo", "--model", "echo")
        self.provider = self._start("home", "provider", "provider", *engine, *joins)
        self.edge = self._start("office", "edge", "edge", "--http", "127.0.0.1:0", *joins)
        for node in self.nodes:
            node.wait_ready()

    def _start(self, where: str, name: str, command: str, *flags: str) -> NodeProcess:
        prefix = self.networks.inside(where)
        node = NodeProcess(name, command, *flags, folder=self.folder, prefix=prefix)
        self.nodes.append(node)
        return node

    def ask(self) -> dict:
        """What a consumer in the office gets now."""
        return question(self.networks.inside("office"), self.edge, self.folder)

    def ask_until_answered(self, seconds: float) -> dict:
        """The first whole answer; fails when none comes in time."""
        found: dict = {}

        def answers() -> bool:
            found.clear()
            found.update(self.ask())
            return bool(found["known"] and found["done"])

        wait_for(answers, seconds, "no answer", self.edge, self.provider)
        return found

    @property
    def carrier(self) -> NodeProcess:
        """The relay that carries the circuits; the first one if none does."""
        carriers = [relay for relay in self.relays if "circuit.opened" in relay.log]
        return carriers[-1] if carriers else self.relays[0]

    def kill_during_a_stream(self, relay: NodeProcess, tokens: int = TOKENS) -> dict:
        """Kill a relay after the first tokens of an answer of `tokens` × 20 ms; what came of it.

        Its `path` is that of the answer, and `seconds` the time since the kill. On a direct path
        it has to be whole: see `assert_undisturbed`.
        """
        script = str(ROOT / "tests" / "netlab" / "long_stream.py")
        arguments = (str(self.edge.port), "echo", str(tokens), str(DELAY_MS))
        stream = subprocess.Popen(
            [*self.networks.inside("office"), sys.executable, script, *arguments],
            env=environment(self.folder), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert stream.stdout is not None
            found = json.loads(stream.stdout.readline())
            relay.kill()
            killed = time.monotonic()
            found |= json.loads(stream.stdout.readline())
            return found | {"seconds": time.monotonic() - killed}
        finally:
            stream.kill()
            stream.communicate()

    def end(self) -> None:
        """End all nodes."""
        for node in reversed(self.nodes):
            node.end()


def assert_undisturbed(found: dict, tokens: int = TOKENS) -> None:
    """The answer of `kill_during_a_stream` is whole."""
    assert found["errors"] == []
    assert (found["text"], found["done"]) == (echo_text("Hi", tokens), True)


@contextmanager
def two_relays(networks: Lab, folder: Path) -> Iterator[TwoRelays]:
    """See `TwoRelays`."""
    running = TwoRelays(networks, folder)
    try:
        yield running
    finally:
        running.end()


@pytest.mark.parametrize("nat_mode", ["", "random"], ids=["default-nat", "symmetric-nat"])
def test_a_killed_relay_is_replaced_by_the_second(
    nat_mode: str, tmp_path: Path, record_property
) -> None:
    """An answer on a direct path does not notice; one on its circuit ends, the next does not."""
    reason = why_not(nat=True)
    if reason:
        pytest.skip(reason)
    with lab(nat=True, nat_mode=nat_mode) as networks, two_relays(networks, tmp_path) as running:
        running.ask_until_answered(KNOWN_SECONDS)
        if not nat_mode:
            edge = running.edge
            wait_for(lambda: "link.upgraded" in edge.log, KNOWN_SECONDS, "no direct path", edge)
        carrier = running.carrier
        found = running.kill_during_a_stream(carrier)
        assert found["path"] == ("circuit" if nat_mode else "direct")
        if nat_mode:
            assert [error["code"] for error in found["errors"]] == ["stream_interrupted"]
        else:
            assert_undisturbed(found)
        lost = time.monotonic()
        answer = running.ask_until_answered(REHOME_SECONDS)
        record_property("rehomed_seconds", round(time.monotonic() - lost, 2))
        assert answer["path"] == found["path"]
        assert not carrier.is_alive
