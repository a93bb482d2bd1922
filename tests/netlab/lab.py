"""Two private networks and a public host, out of network namespaces on this machine (root only).

    home 10.1.0.2 -- router 203.0.113.1 --+
                                         +-- internet 203.0.113.0/24 -- public 203.0.113.10
    office 10.2.0.2 -- router 203.0.113.2 --+

Each router drops what was not asked for from inside, and translates addresses. Without `nat` there
are no routers: both ends have a leg of their own to the public host, which forwards nothing.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

PUBLIC = "203.0.113.10"
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


def why_not(*, nat: bool) -> str:
    """The reason why this lab cannot be built here; empty if it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", *(("nft",) if nat else ())):
        if shutil.which(tool) is None:
            return f"needs the program {tool}"
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


class Lab:
    """Namespaces by name: `home`, `office` and `public`."""

    def __init__(self, *, nat: bool, nat_mode: str = "") -> None:
        self._tag = f"aimo{os.getpid()}"
        self._nat = nat
        self._nat_mode = nat_mode
        self._names: list[str] = []
        self.public = PUBLIC if nat else ""
        """Where everybody reaches the public host; without NAT each end has its own address."""

    def build(self) -> None:
        """Make the namespaces and what joins them."""
        if self._nat:
            self._build_nat()
        else:
            self._build_apart()

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command so that it runs in a namespace."""
        return ("ip", "netns", "exec", f"{self._tag}-{name}")

    def close(self) -> None:
        """Take everything down."""
        for name in self._names:
            run("ip", "netns", "del", f"{self._tag}-{name}")

    def _add(self, *names: str) -> None:
        for name in names:
            run("ip", "netns", "add", f"{self._tag}-{name}")
            self._names.append(name)
            self._ip(name, "link", "set", "lo", "up")

    def _ip(self, name: str, *words: str) -> None:
        run("ip", "-n", f"{self._tag}-{name}", *words)

    def _join(self, one: str, end: str, address: str, two: str, far_end: str, far: str) -> None:
        peer = ("peer", "name", far_end, "netns", f"{self._tag}-{two}")
        self._ip(one, "link", "add", end, "type", "veth", *peer)
        for name, device, own in ((one, end, address), (two, far_end, far)):
            if own:
                self._ip(name, "addr", "add", own, "dev", device)
            self._ip(name, "link", "set", device, "up")

    def _build_apart(self) -> None:
        self._add("home", "office", "public")
        for number, name in enumerate(("home", "office"), 1):
            far = f"10.{number}.0.1/24"
            self._join(name, "eth0", f"10.{number}.0.2/24", "public", f"leg{number}", far)
            self._ip(name, "route", "add", "default", "via", f"10.{number}.0.1")
        run(*self.inside("public"), "sysctl", "-qw", "net.ipv4.ip_forward=0")

    def _build_nat(self) -> None:
        self._add("home", "office", "public", "internet", "router1", "router2")
        self._ip("internet", "link", "add", "bridge", "type", "bridge")
        self._ip("internet", "link", "set", "bridge", "up")
        for number, name in enumerate(("home", "office"), 1):
            router, port = f"router{number}", f"port{number}"
            self._join(name, "eth0", f"10.{number}.0.2/24", router, "lan", f"10.{number}.0.1/24")
            self._join(router, "wan", f"203.0.113.{number}/24", "internet", port, "")
            self._ip("internet", "link", "set", port, "master", "bridge")
            self._ip(name, "route", "add", "default", "via", f"10.{number}.0.1")
            run(*self.inside(router), "sysctl", "-qw", "net.ipv4.ip_forward=1")
            run(*self.inside(router), "nft", "-f", "-", text=RULES.replace("MODE", self._nat_mode))
        self._join("public", "eth0", f"{PUBLIC}/24", "internet", "port3", "")
        self._ip("internet", "link", "set", "port3", "master", "bridge")


@contextmanager
def lab(*, nat: bool, nat_mode: str = "") -> Iterator[Lab]:
    """The lab, taken down at the end.

    Args:
        nat: whether there are routers that translate.
        nat_mode: `random` for a port of its own for each connection, as symmetric NATs choose.
    """
    networks = Lab(nat=nat, nat_mode=nat_mode)
    try:
        networks.build()
        yield networks
    finally:
        networks.close()
