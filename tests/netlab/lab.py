"""Two private networks and two public hosts, out of network namespaces on this machine (root only).

    home 10.1.0.2 -- router 203.0.113.1 --+                             +-- public  203.0.113.10
                                         +-- internet 203.0.113.0/24 --+
    office 10.2.0.2 -- router 203.0.113.2 --+                           +-- public2 203.0.113.11

Each router drops what was not asked for from inside, and translates addresses. Without `nat` there
are no routers: both ends have a leg of their own to the public host, which forwards nothing. With a
`line` the ways out of home and office are wires of that quality (see `wire`).

The names of the namespaces carry the process id of the test run: what a killed run left behind is
found by that, and taken away by the next one.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.netlab.wire import NAMESPACES, TUN_DEVICE, Quality, Wire

PUBLIC = "203.0.113.10"
PUBLIC2 = "203.0.113.11"
LEFTOVER = re.compile(r"aimo(\d+)-\w+")
RULES = """
table ip nat {
  chain post { type nat hook postrouting priority 100; oifname "wan" masquerade MODE; }
}
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan" accept
  }
  chain input {
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }
}
"""


def why_not(*, nat: bool, line: bool = False, tools: Sequence[str] = ()) -> str:
    """The reason why this lab cannot be built here; empty if it can. `tools`: also needed."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", *(("nft",) if nat else ()), *tools):
        if shutil.which(tool) is None:
            return f"needs the program {tool}"
    if line and not TUN_DEVICE.exists():
        return f"needs the device {TUN_DEVICE}"
    probe = f"aimo-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.decode().strip()}"
    try:
        if nat:
            filter_packets = ["ip", "netns", "exec", probe, "nft", "-f", "-"]
            rules = RULES.replace("MODE", "")
            tried = subprocess.run(
                filter_packets, input=rules.encode(), capture_output=True, check=False
            )
            if tried.returncode:
                return f"no network address translation here: {tried.stderr.decode().strip()}"
    finally:
        run("ip", "netns", "del", probe)
    return ""


def run(*command: str, text: str = "") -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"


def remove_leftovers() -> None:
    """Namespaces of test runs that have been killed."""
    for path in NAMESPACES.glob("aimo*-*"):
        found = LEFTOVER.fullmatch(path.name)
        if found and not _lives(int(found[1])):
            run("ip", "netns", "del", path.name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Lab:
    """Namespaces by name: `home`, `office` and `public`, with NAT also `public2`."""

    def __init__(
        self, *, nat: bool, line: Quality | None, forwards: bool, congestion: str, nat_mode: str
    ) -> None:
        """As `lab` below."""
        self._tag = f"aimo{os.getpid()}"
        self._nat = nat
        self._nat_mode = nat_mode
        self._line = line
        self._forwards = forwards
        self._congestion = congestion
        self._names: list[str] = []
        self._wires: list[Wire] = []
        self.public = PUBLIC if nat else ""
        """Where everybody reaches the public host; without NAT each end has its own address."""

    def build(self) -> None:
        """Make the namespaces and what joins them."""
        remove_leftovers()
        if self._nat:
            self._build_nat()
        else:
            self._build_apart()

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command so that it runs in a namespace."""
        return ("ip", "netns", "exec", f"{self._tag}-{name}")

    def close(self) -> None:
        """Take everything down."""
        while self._wires:
            self._wires.pop().close()
        while self._names:
            run("ip", "netns", "del", f"{self._tag}-{self._names.pop()}")

    def _add(self, *names: str) -> None:
        for name in names:
            run("ip", "netns", "add", f"{self._tag}-{name}")
            self._names.append(name)
            self._ip(name, "link", "set", "lo", "up")
            if self._congestion:
                self.set(name, "net/ipv4/tcp_congestion_control", self._congestion)

    def set(self, name: str, setting: str, value: str) -> None:
        """Change a setting of a namespace's kernel, below `/proc/sys`."""
        run(*self.inside(name), "sh", "-c", f"echo {value} >/proc/sys/{setting}")

    def _ip(self, name: str, *words: str) -> None:
        run("ip", "-n", f"{self._tag}-{name}", *words)

    def _join(
        self, one: tuple[str, str, str], two: tuple[str, str, str], *, wired: bool = False
    ) -> None:
        """Join two ends, each a name, a device and an address or none; `wired`: by the line."""
        ends = [(f"{self._tag}-{name}", device) for name, device, _ in (one, two)]
        if wired and self._line is not None:
            self._wires.append(Wire(*ends, self._line))
        else:
            peer = ("peer", "name", two[1], "netns", ends[1][0])
            self._ip(one[0], "link", "add", one[1], "type", "veth", *peer)
        for name, device, address in (one, two):
            if address:
                self._ip(name, "addr", "add", address, "dev", device)
            self._ip(name, "link", "set", device, "up")

    def _build_apart(self) -> None:
        self._add("home", "office", "public")
        for number, name in enumerate(("home", "office"), 1):
            near = (name, "eth0", f"10.{number}.0.2/24")
            self._join(near, ("public", f"leg{number}", f"10.{number}.0.1/24"), wired=True)
            self._ip(name, "route", "add", "default", "via", f"10.{number}.0.1")
        self.set("public", "net/ipv4/ip_forward", str(int(self._forwards)))

    def _build_nat(self) -> None:
        self._add("home", "office", "public", "public2", "internet", "router1", "router2")
        self._ip("internet", "link", "add", "bridge", "type", "bridge")
        self._ip("internet", "link", "set", "bridge", "up")
        for number, name in enumerate(("home", "office"), 1):
            router = f"router{number}"
            near = (name, "eth0", f"10.{number}.0.2/24")
            self._join(near, (router, "lan", f"10.{number}.0.1/24"))
            self._plug_in((router, "wan", f"203.0.113.{number}/24"), f"port{number}", wired=True)
            self._ip(name, "route", "add", "default", "via", f"10.{number}.0.1")
            self.set(router, "net/ipv4/ip_forward", "1")
            run(*self.inside(router), "nft", "-f", "-", text=RULES.replace("MODE", self._nat_mode))
        for number, (name, address) in enumerate((("public", PUBLIC), ("public2", PUBLIC2)), 3):
            self._plug_in((name, "eth0", f"{address}/24"), f"port{number}")

    def _plug_in(self, end: tuple[str, str, str], port: str, *, wired: bool = False) -> None:
        self._join(end, ("internet", port, ""), wired=wired)
        self._ip("internet", "link", "set", port, "master", "bridge")


@contextmanager
def lab(
    *,
    nat: bool,
    nat_mode: str = "",
    line: Quality | None = None,
    forwards: bool = False,
    congestion: str = "",
) -> Iterator[Lab]:
    """The lab, taken down at the end.

    Args:
        nat: with routers that translate addresses.
        nat_mode: `random` for a port of its own for each connection, as symmetric NATs choose.
        line: the quality of the ways from home and office; none: as good as the machine.
        forwards: without NAT, whether the public host passes packets from end to end.
        congestion: the congestion control of all TCP in it; none: this machine's default.
    """
    networks = Lab(nat=nat, line=line, forwards=forwards, congestion=congestion, nat_mode=nat_mode)
    try:
        networks.build()
        yield networks
    finally:
        networks.close()
