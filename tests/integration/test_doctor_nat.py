"""The doctor behind real NATs, made of network namespaces; root's business, skipped elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 20.0
DOCTOR_SECONDS = 60
RULES = """
table ip nat {{
  chain post {{
    type nat hook postrouting priority 100
    oifname "wan" masquerade {mode}
  }}
}}
"""


class Lab:
    """A host behind a NAT, and two relays on the public side at different ports."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder = folder
        self._mode = mode
        self._names = [f"doc{os.getpid()}-{part}" for part in ("home", "nat", "public")]
        self._relays: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        home, nat, public = self._names
        for name in self._names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self._wire(home, "eth0", "10.77.0.2/24", nat, "lan", "10.77.0.1/24")
        self._wire(public, "eth0", "203.0.113.10/24", nat, "wan", "203.0.113.1/24")
        run("ip", "-n", home, "route", "add", "default", "via", "10.77.0.1")
        run("ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = RULES.format(mode=self._mode)
        run("ip", "netns", "exec", nat, "nft", "-f", "-", text=rules)

    def start_relay(self, name: str, port: int, *flags: str) -> Path:
        """Start one; the file that holds its join string once it is ready."""
        join = self.folder / f"{name}.join"
        own = ["--state", str(self.folder / name), "--join-file", str(join)]
        listen = ["--listen", f"/ip4/203.0.113.10/tcp/{port}"]
        command = [*self._inside(2), "relay", *own, *listen, *flags]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._relays.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment(self.folder))
            )
        deadline = time.monotonic() + START_SECONDS
        while not join.exists():
            assert time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(0.05)
        return join

    def nat_seen(self, *joins: Path) -> dict[str, str]:
        """What the doctor at home finds."""
        flags = [flag for join in joins for flag in ("--join", f"@{join}")]
        own = ["--state", str(self.folder / "node"), "--json"]
        done = subprocess.run(
            [*self._inside(0), "doctor", *own, *flags],
            env=environment(self.folder),
            capture_output=True,
            timeout=DOCTOR_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return next(one for one in json.loads(done.stdout) if one["check"] == "nat")

    def down(self) -> None:
        for relay in self._relays:
            relay.kill()
            relay.wait()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _wire(self, *ends: str) -> None:
        one, its_link, its_address, other, link, address = ends
        run("ip", "-n", one, "link", "add", its_link, "type", "veth", "peer", link, "netns", other)
        for name, port, where in ((one, its_link, its_address), (other, link, address)):
            run("ip", "-n", name, "addr", "add", where, "dev", port)
            run("ip", "-n", name, "link", "set", port, "up")

    def _inside(self, index: int) -> list[str]:
        program = [sys.executable, "-m", "aimo_node"]
        return ["ip", "netns", "exec", self._names[index], *program]


def run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text.encode(), capture_output=True, check=True)


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIMO_")}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder)}


@pytest.fixture
def lab(tmp_path, request) -> Iterator[Lab]:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nft")):
        pytest.skip("network namespaces take root, ip and nft")
    made = Lab(tmp_path, request.param)
    try:
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode()[:200]}")
        yield made
    finally:
        made.down()


def two_relays(lab: Lab) -> tuple[Path, Path]:
    """Both of one mesh."""
    first = lab.start_relay("one", 4001)
    secret = lab.folder / "one" / "mesh.secret"
    return first, lab.start_relay("two", 4002, "--mesh-secret-file", str(secret))


@pytest.mark.parametrize("lab", [""], indirect=True)
def test_a_nat_that_is_the_same_for_everybody_is_told(lab) -> None:
    first, second = two_relays(lab)
    seen = lab.nat_seen(first, second)
    assert seen["verdict"] == "ok"
    assert "default (endpoint independent): " in seen["seen"]
    assert "is seen as 203.0.113.1 by every relay" in seen["seen"]
    assert "takes two relays" in lab.nat_seen(first)["seen"]


@pytest.mark.parametrize("lab", ["random"], indirect=True)
def test_a_symmetric_nat_is_told(lab) -> None:
    seen = lab.nat_seen(*two_relays(lab))
    assert seen["verdict"] == "warning"
    assert "symmetric" in seen["seen"]
