"""The whole path, HTTP to engine and back, against direct access to the same upstream.

    python -m benchmarks.path                      everything, about four minutes
    python -m benchmarks.path --quick              fewer loads, two seconds each
    python -m benchmarks.path --engine echo        only the mesh's own cost, no upstream behind it

CPU is user plus system time of each process, so it does not move with what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.processes import NodeProcess, free_port, used, wait_listening
from benchmarks.tools import Load, Outcome, build, read_outcome

MODEL = "mock"
LOADS = (
    Load("json x1", 1),
    Load("json x64", 64),
    Load("first token", 1, 0, 3),
    Load("1 x 10 ms", 1, 10_000),
    Load("64 x 10 ms", 64, 10_000),
    Load("256 x 10 ms", 256, 10_000),
    Load("1000 x 10 ms", 1000, 10_000),
    Load("1 x 40 ms", 1, 40_000, 25),
    Load("64 x 40 ms", 64, 40_000),
    Load("256 x 40 ms", 256, 40_000),
    Load("1000 x 40 ms", 1000, 40_000),
    Load("16 flat out", 16, 0, 400),
)
QUICK = ("json x64", "first token", "256 x 10 ms", "256 x 40 ms")


@dataclass(frozen=True, slots=True)
class Row:
    """One load over one way: what the consumer saw and what the processes used per unit."""

    way: str
    load: str
    outcome: Outcome
    edge_us: float = 0.0
    provider_us: float = 0.0
    edge_mb: float = 0.0
    provider_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """Three nodes and where their edge is."""

    port: int
    edge: NodeProcess
    provider: NodeProcess
    ready_seconds: float


@contextmanager
def running_mesh(folder: Path, provider_arguments: list[str]) -> Iterator[Mesh]:
    """Relay, provider and edge; all three start at once."""
    folder.mkdir()
    join = folder / "join"
    port = free_port()
    started = time.perf_counter()
    with ExitStack() as stack:
        relay = NodeProcess(
            folder, "relay", "--listen", "/ip4/127.0.0.1/tcp/0", "--join-file", str(join)
        )
        stack.callback(relay.stop)
        arguments = ["--join", f"@{join}", *provider_arguments, "--requests-max", "2000"]
        provider = NodeProcess(folder, "provider", *arguments)
        stack.callback(provider.stop)
        edge = NodeProcess(folder, "edge", "--join", f"@{join}", "--http", f"127.0.0.1:{port}")
        stack.callback(edge.stop)
        for node in (relay, provider, edge):
            node.wait_ready()
        _wait_for_model(port)
        yield Mesh(port, edge, provider, time.perf_counter() - started)


def cold_start(folder: Path) -> float:
    """Seconds from starting another edge of a running mesh to its first answer."""
    port = free_port()
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    started = time.perf_counter()
    join = ["--join", f"@{folder / 'join'}"]
    (folder / "cold").mkdir()
    node = NodeProcess(folder / "cold", "edge", *join, "--http", f"127.0.0.1:{port}")
    try:
        while time.perf_counter() - started < 30:
            with suppress(OSError), closing(HTTPConnection("127.0.0.1", port)) as consumer:
                headers = {"content-type": "application/json"}
                consumer.request("POST", "/v1/chat/completions", body, headers)
                if consumer.getresponse().status == HTTPStatus.OK:
                    return time.perf_counter() - started
            time.sleep(0.01)
    finally:
        node.stop()
    sys.exit("the edge does not answer")


def _wait_for_model(port: int) -> None:
    load = Load("warm", 1)
    for _ in range(100):
        if run_load(port, load, 0.2).bad == 0:
            return
    sys.exit("the edge does not serve the model")


def run_load(port: int, load: Load, seconds: float) -> Outcome:
    """Run the load generator and wait for it."""
    command = [str(build("sse_load")), *load.arguments(port, MODEL, seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return read_outcome(done.stdout, load)


def measure(way: str, port: int, load: Load, seconds: float, *, mesh: Mesh | None = None) -> Row:
    """One load; CPU is sampled between the end of the warm-up and the end."""
    if mesh is None:
        return Row(way, load.name, run_load(port, load, seconds))
    command = [str(build("sse_load")), *load.arguments(port, MODEL, seconds)]
    pids = (mesh.edge.pid, mesh.provider.pid)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(load.warmup_seconds + 0.2)
    first, first_at = [used(pid) for pid in pids], time.perf_counter()
    last, last_at = first, first_at
    peak = [0.0, 0.0]
    while running.poll() is None and time.perf_counter() - first_at < seconds - 0.3:
        time.sleep(0.1)
        last, last_at = [used(pid) for pid in pids], time.perf_counter()
        peak = [max(before, now.memory_mb) for before, now in zip(peak, last, strict=True)]
    assert running.stdout is not None
    outcome = read_outcome(running.stdout.read(), load)
    running.wait()
    units = outcome.per_second * max(last_at - first_at, 1e-9)
    spent = [
        1e6 * (after.cpu_seconds - before.cpu_seconds) / max(units, 1.0)
        for before, after in zip(first, last, strict=True)
    ]
    return Row(way, load.name, outcome, spent[0], spent[1], peak[0], peak[1])


def show(row: Row, direct: Row | None) -> None:
    """One line of the table."""
    seen = row.outcome
    added = "" if direct is None else f"{seen.first_p50 - direct.outcome.first_p50:+9.2f}"
    if direct is not None and row.load.startswith("json"):
        added = f"{seen.total_p50 - direct.outcome.total_p50:+9.2f}"
    ratio = "" if direct is None else f"{seen.per_second / max(direct.outcome.per_second, 1):6.2f}"
    print(
        f"{row.load:14}{row.way:13}{seen.per_second:9.0f}{ratio:>7}{added:>10}"
        f"{seen.late_p50:8.1f}{seen.late_p99:8.1f}{row.edge_us:9.1f}{row.provider_us:9.1f}"
        f"{row.edge_mb:7.0f}{row.provider_mb:7.0f}{seen.bad:5}  {seen.first_error}",
        flush=True,
    )


HEADER = (
    f"{'load':14}{'way':13}{'unit/s':>9}{'ratio':>7}{'added ms':>10}{'late50':>8}{'late99':>8}"
    f"{'edge us':>9}{'prov us':>9}{'edgeMB':>7}{'provMB':>7}{'bad':>5}"
)


def main() -> None:
    """Measure and print; `--json FILE` keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer loads, two seconds each")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time per load")
    parser.add_argument("--engine", choices=("both", "echo", "openai"), default="both")
    parser.add_argument("--only", help="loads by name, comma-separated")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    names = QUICK if options.quick else [load.name for load in LOADS]
    names = options.only.split(",") if options.only else names
    loads = [load for load in LOADS if load.name in names]
    engines = ("echo", "openai") if options.engine == "both" else (options.engine,)
    print(describe_machine(), flush=True)
    rows = compare(loads, engines, 2.0 if options.quick else options.seconds)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def compare(loads: list[Load], engines: tuple[str, ...], seconds: float) -> list[Row]:
    """Every load, directly and through each mesh in turn, so that noise falls on all alike."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="aimo-path-") as temporary, ExitStack() as stack:
        upstream = free_port()
        mock = subprocess.Popen([str(build("mock_upstream")), "--port", str(upstream)])
        stack.callback(mock.wait)
        stack.callback(mock.terminate)
        wait_listening(upstream)
        meshes: dict[str, Mesh] = {}
        for engine in engines:
            folder = Path(temporary) / engine
            mesh = stack.enter_context(running_mesh(folder, engine_arguments(engine, upstream)))
            meshes[f"mesh, {engine}"] = mesh
            describe_mesh(engine, mesh, cold_start(folder))
        print(HEADER, flush=True)
        for load in loads:
            direct = measure("direct", upstream, load, seconds)
            show(direct, None)
            rows.append(direct)
            for way, mesh in meshes.items():
                row = measure(way, mesh.port, load, seconds, mesh=mesh)
                show(row, direct)
                rows.append(row)
    return rows


def engine_arguments(engine: str, upstream: int) -> list[str]:
    """The provider's arguments: an answer made up in the node, or one from the mock upstream."""
    if engine == "echo":
        return ["--engine", "echo", "--model", MODEL, "--engine-args", "--stamp"]
    endpoint = f"http://127.0.0.1:{upstream}/v1"
    return ["--engine", "openai", "--endpoint", endpoint, "--model", MODEL]


def describe_mesh(engine: str, mesh: Mesh, cold_seconds: float) -> None:
    """Memory and start-up times."""
    edge, provider = used(mesh.edge.pid), used(mesh.provider.pid)
    print(
        f"mesh, {engine}: idle {edge.memory_mb:.0f} MB edge, {provider.memory_mb:.0f} MB provider; "
        f"from start to first answer {mesh.ready_seconds:.2f} s for all three at once, "
        f"{cold_seconds:.2f} s for one more edge",
        flush=True,
    )


if __name__ == "__main__":
    main()
