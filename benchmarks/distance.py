"""What distance does to a mesh: hosts apart by delay and loss, each way against plain HTTP (root).

    python -m benchmarks.distance                       about eight minutes
    python -m benchmarks.distance --congestion cubic    if this kernel allows that in a namespace

Provider and edge have a line each to a public host, which forwards packets between them (`direct`)
or only runs the relay (`circuit`). Half of delay and loss is on each line, in both directions, so
either way a packet takes DELAY from end to end, and gets there with a probability of 1 - LOSS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.distance_bulk import BULK_PORT
from benchmarks.machine import describe_machine
from benchmarks.processes import NodeProcess, used
from benchmarks.tools import Load, Outcome, build, read_outcome
from tests.netlab.lab import Lab, lab, why_not
from tests.netlab.wire import Quality

MODEL = "mock"
BULK_MODEL = "bulk"
HOME = "10.1.0.2"
UPSTREAM_PORT = 9100
EDGE_PORT = 8000
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED = CONGESTION.with_name("tcp_allowed_congestion_control")
"""What namespaces may choose; besides the default, more with `sysctl -w`."""
KNOWN_SECONDS = 30.0
BULK_BYTES = 2_000_000
BULK_ROUNDS = 3

QUALITIES = (("no delay", 0.0, 0.0), ("50 ms", 50.0, 0.0), ("50 ms, 1 %", 50.0, 0.01))
FIRST = Load("first token", 1, 0, 3)
LOADS = (Load("1 x 20 ms", 1, 20_000), Load("16 x 20 ms", 16, 20_000))


@dataclass(frozen=True, slots=True)
class Way:
    """One way from the consumer's end to the far one.

    Attributes:
        host: where the consumer asks, seen from the office.
        nodes: whose CPU time counts; none for plain HTTP.
    """

    name: str
    host: str
    port: int
    bulk_port: int
    nodes: Sequence[NodeProcess] = ()


@contextmanager
def plain(networks: Lab) -> Iterator[Way]:
    """The mock upstream and a server of bulk, asked over the same wires without a mesh."""
    inside = networks.inside("home")
    servers = (
        [str(build("mock_upstream")), "--host", HOME, "--port", str(UPSTREAM_PORT)],
        [sys.executable, "-m", "benchmarks.distance_bulk", "serve", HOME],
    )
    running = [subprocess.Popen([*inside, *server]) for server in servers]
    try:
        _wait(networks, HOME, UPSTREAM_PORT, BULK_PORT)
        yield Way("plain HTTP", HOME, UPSTREAM_PORT, BULK_PORT)
    finally:
        for process in running:
            process.terminate()
            process.wait()


@contextmanager
def mesh(networks: Lab, folder: Path, way: str) -> Iterator[Way]:
    """Relay, two providers with the echo engine, one of them for the bulk, and edge."""
    (folder / "bulk").mkdir(parents=True)
    networks.set("public", "net/ipv4/ip_forward", str(int(way == "direct")))
    join = folder / "join"
    flags = {
        "public": ("relay", "--listen", "/ip4/0.0.0.0/tcp/4001", "--join-file", str(join)),
        "home": (
            *("provider", "--engine", "echo", "--model", MODEL, "--engine-args", "--stamp"),
            *("--join", f"@{join}"),
        ),
        "office": ("edge", "--http", f"127.0.0.1:{EDGE_PORT}", "--join", f"@{join}"),
    }
    with ExitStack() as stack:

        def start(where: str, folder: Path, role: str, *more: str) -> NodeProcess:
            node = NodeProcess(folder, role, *more, inside=networks.inside(where))
            stack.callback(node.stop)
            return node

        nodes = [start(where, folder, *words) for where, words in flags.items()]
        echo = ("provider", "--engine", "echo", "--model", BULK_MODEL, "--join", f"@{join}")
        for node in (*nodes, start("home", folder / "bulk", *echo)):
            node.wait_ready()
        _wait_for_path(networks, way)
        yield Way(way, "127.0.0.1", EDGE_PORT, EDGE_PORT, nodes)


def _wait(networks: Lab, host: str, *ports: int) -> None:
    knock = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    for port in ports:
        command = [*networks.inside("office"), sys.executable, "-c", knock, host, str(port)]
        deadline = time.monotonic() + KNOWN_SECONDS
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                sys.exit(f"nobody answers at {host} port {port}")


def _wait_for_path(networks: Lab, way: str) -> None:
    edge = ("peers", "--json", "--edge", f"http://127.0.0.1:{EDGE_PORT}")
    command = [*networks.inside("office"), sys.executable, "-m", "aimo_node", *edge]
    deadline = time.monotonic() + KNOWN_SECONDS
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        paths = [one["path"] for one in json.loads(done.stdout or '{"data": []}')["data"]]
        if paths == [way, way]:
            return
        if time.monotonic() > deadline:
            sys.exit(f"the edge has the paths {paths}, not {way}")


def ask(networks: Lab, way: Way, load: Load, seconds: float) -> tuple[Outcome, list[float]]:
    """One load from the office; with CPU µs per unit of relay, provider and edge."""
    arguments = load.arguments(way.port, MODEL, seconds)
    command = [str(build("sse_load")), "--host", way.host, *arguments]
    before = [used(node.pid).cpu_seconds for node in way.nodes]
    done = subprocess.run(
        [*networks.inside("office"), *command], stdout=subprocess.PIPE, text=True, check=True
    )
    outcome = read_outcome(done.stdout, load)
    units = max(1.0, outcome.per_second * (seconds + load.warmup_seconds))
    after = [used(node.pid).cpu_seconds for node in way.nodes]
    return outcome, [1e6 * (b - a) / units for a, b in zip(before, after, strict=True)]


def bulk(networks: Lab, way: Way) -> tuple[float, float]:
    """MB/s up and down of one body there and the same back, median."""
    speeds = []
    for _ in range(BULK_ROUNDS):
        target = ("ask", way.host, str(way.bulk_port), BULK_MODEL, str(BULK_BYTES))
        command = [sys.executable, "-m", "benchmarks.distance_bulk", *target]
        done = subprocess.run(
            [*networks.inside("office"), *command], stdout=subprocess.PIPE, text=True, check=True
        )
        speeds.append(json.loads(done.stdout))
    up, down = (statistics.median(column) for column in zip(*speeds, strict=True))
    return up, down


HEADER = (
    f"{'way':12}{'first ms':>10}{'up MB/s':>9}{'down':>7}{'1: late50':>11}{'late99':>8}"
    f"{'16: chunk/s':>13}{'late50':>8}{'late99':>8}{'relay us':>10}{'prov':>6}{'edge':>6}{'bad':>5}"
)


def measure(networks: Lab, way: Way, seconds: float) -> None:
    """All loads on one way: one line of the table."""
    first, _ = ask(networks, way, FIRST, seconds)
    lone, _ = ask(networks, way, LOADS[0], seconds)
    many, cpu = ask(networks, way, LOADS[1], seconds)
    up, down = bulk(networks, way)
    spent = "".join(f"{value:{width}.0f}" for value, width in zip(cpu, (10, 6, 6), strict=False))
    print(
        f"{way.name:12}{first.first_p50:10.1f}{up:9.2f}{down:7.2f}{lone.late_p50:11.1f}"
        f"{lone.late_p99:8.1f}{many.per_second:13.0f}{many.late_p50:8.1f}{many.late_p99:8.1f}"
        f"{spent or ' ' * 22}{first.bad + lone.bad + many.bad:5}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time per load")
    parser.add_argument("--congestion", default="", help="of all TCP; else this machine's default")
    options = parser.parse_args()
    reason = why_not(nat=False, line=True)
    if reason:
        sys.exit(f"benchmarks.distance: {reason}")
    os.environ["AIMO_NODE__GRACE_SECONDS"] = "2"
    congestion = options.congestion or CONGESTION.read_text().strip()
    if options.congestion and options.congestion not in ALLOWED.read_text().split():
        sys.exit(f"benchmarks.distance: {options.congestion} is not in {ALLOWED}: add it there")
    print(f"{describe_machine()}, TCP {congestion}", flush=True)
    for name, delay_ms, loss in QUALITIES:
        # Two lines make up the way, so each loses the square root's share.
        line = Quality(delay_ms / 2, 1 - (1 - loss) ** 0.5)
        print(f"\n{name}\n{HEADER}", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="aimo-distance-") as temporary,
            lab(nat=False, line=line, forwards=True, congestion=options.congestion) as networks,
        ):
            with plain(networks) as way:
                measure(networks, way, options.seconds)
            for path in ("direct", "circuit"):
                with mesh(networks, Path(temporary) / path, path) as way:
                    measure(networks, way, options.seconds)


if __name__ == "__main__":
    main()
