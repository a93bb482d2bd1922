"""One link against the bare libp2p stream it runs on: six goals, measured in one run.

    python -m benchmarks.link

Both ways are measured in turns over the same connection, so that what the machine does meanwhile
falls on both; figures are medians over the rounds, ratios the median of the rounds' own ratios, and
`best` is the round that was disturbed least. The two ends are two processes, each on a core of its
own as on two machines; a circuit's relay is a third. CPU is user plus system time of all of them.
Takes half a minute, at most one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import trio

from aimo_node.telemetry.logs import configure_logging
from benchmarks import circuit
from benchmarks.comparing import HEADER, Compared, Row, compare
from benchmarks.link_child import BODY_BYTES, ECHO_PROTOCOL, POUR_PROTOCOL
from benchmarks.link_near import BULK_REQUESTS, Near, near_node
from benchmarks.machine import describe_machine
from benchmarks.processes import collect_as_a_node, far_end

SECONDS_MAX: Final = 60.0
TRIPS: Final = 40
"""Round trips in a row, before it is the other way's turn."""
CHUNKS: Final = 64_000
CHUNK_BYTES: Final = 100
CIRCUIT_MEGABYTES: Final = 16

LONE_RATIO_MAX: Final = 1.2
CHUNKS_PER_SECOND_MIN: Final = 130_000
BULK_MEGABYTES_PER_SECOND_MIN: Final = 100
DIAL_MILLISECONDS_MAX: Final = 15
CIRCUIT_MEGABYTES_PER_SECOND_MIN: Final = 20
LINKS_MEGABYTES_MAX: Final = 10


@contextmanager
def cores_apart(pid: int) -> Iterator[None]:
    """This process and another each on a core of its own, if there are two: else the scheduler
    puts them now on one, now on two, and the time to wake up changes by half."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        mine, other, *_ = sorted(allowed)
        os.sched_setaffinity(0, {mine})
        os.sched_setaffinity(pid, {other})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


async def memory_row(folder: Path) -> Row:
    """What 100 links keep resident."""
    seen = {}
    for way in ("dialled", "accepted"):
        (folder / way).mkdir()
        command = [sys.executable, "-m", "benchmarks.link_memory", way, str(folder / way)]
        done = await trio.run_process(command, capture_stdout=True)
        seen[way] = json.loads(done.stdout)
    bare, idle, used = (seen["dialled"][name] for name in ("bare", "idle", "used"))
    came_in = seen["accepted"]["idle"]
    return Row(
        "100 links to as many nodes, MB",
        f"≤ {LINKS_MEGABYTES_MAX}",
        used,
        used,
        "as many bare connections, a stream on each",
        bare,
        used / bare,
        "",
        passed=max(idle, used, came_in) <= LINKS_MEGABYTES_MAX,
        note=f"resident memory of the process that dialled: {idle:.1f} MB after the Hellos, "
        f"{used:.1f} MB after a request over each; {came_in:.1f} MB where the others dialled",
    )


async def link_rows(folder: Path, rounds: int) -> list[Row]:
    """All that takes two processes."""
    with far_end(folder, 1) as (pid, (address,)), cores_apart(pid):
        async with near_node(folder, "near", address) as near:
            await near.network.connect(near.far)
            collect_as_a_node()
            rows = [
                *await lone_rows(near, rounds, pid),
                await chunks_row(near, rounds // 10, pid),
                await bulk_row(near, rounds // 10, pid),
            ]
        async with near_node(folder, "near-dial", address) as near:
            return [*rows, await dial_row(near, rounds // 5, pid)]


async def lone_rows(near: Near, rounds: int, pid: int) -> list[Row]:
    """Nothing else on the connection."""
    stream = await near.bare(ECHO_PROTOCOL)
    echoed = partial(near.echoed, stream, TRIPS)
    lone = await compare(rounds, partial(near.lone, TRIPS), echoed, [pid])
    asked = await compare(rounds // 4, partial(near.asked, TRIPS), echoed, [pid])
    bare = "200 bytes echoed on a bare stream"
    return [
        Row(
            "lone frame and back, µs",
            f"ratio ≤ {LONE_RATIO_MAX}",
            lone.value,
            lone.best,
            bare,
            lone.baseline,
            lone.ratio,
            _cpu(lone, TRIPS, 1e6, "µs"),
            passed=lone.ratio <= LONE_RATIO_MAX,
            note="a frame of 200 bytes announced, and one announced back",
        ),
        Row(
            "request of one chunk and its end, µs",
            "",
            asked.value,
            asked.best,
            bare,
            asked.baseline,
            asked.ratio,
            _cpu(asked, TRIPS, 1e6, "µs"),
            passed=True,
        ),
    ]


async def chunks_row(near: Near, rounds: int, pid: int) -> Row:
    """32 answers at a time, each as fast as its credit allows."""
    stream = await near.bare(POUR_PROTOCOL)
    poured = partial(near.poured, stream, CHUNKS * CHUNK_BYTES)
    seen = await compare(rounds, partial(near.chunks, CHUNKS), poured, [pid], more_is_better=True)
    baseline = seen.baseline / CHUNK_BYTES
    return Row(
        "chunks of 100 B that queue, a second",
        f"≥ {CHUNKS_PER_SECOND_MIN:,}",
        seen.value,
        seen.best,
        "as many bytes poured on a bare stream",
        baseline,
        seen.ratio * CHUNK_BYTES,
        _cpu(seen, CHUNKS, 1e6, "µs"),
        passed=seen.value >= CHUNKS_PER_SECOND_MIN,
    )


async def bulk_row(near: Near, rounds: int, pid: int) -> Row:
    """Answers of 8 MB, four at a time."""
    stream = await near.bare(POUR_PROTOCOL)
    total = BULK_REQUESTS * BODY_BYTES
    seen = await compare(
        rounds, near.bulk, partial(near.poured, stream, total), [pid], more_is_better=True
    )
    return Row(
        "answers of 8 MB, MB/s",
        f"≥ {BULK_MEGABYTES_PER_SECOND_MIN}",
        seen.value / 1e6,
        seen.best / 1e6,
        "as many bytes poured on a bare stream",
        seen.baseline / 1e6,
        seen.ratio,
        _cpu(seen, total // 1_000_000, 1e3, "ms"),
        passed=seen.value >= BULK_MEGABYTES_PER_SECOND_MIN * 1e6,
    )


async def dial_row(near: Near, rounds: int, pid: int) -> Row:
    """From nothing, and hung up again each time."""
    seen = await compare(rounds, near.dialled, near.dialled_bare, [pid])
    return Row(
        "dial to an open link, ms",
        f"≤ {DIAL_MILLISECONDS_MAX}",
        seen.value,
        seen.best,
        "dial to a bare stream",
        seen.baseline,
        seen.ratio,
        _cpu(seen, 1, 1e3, "ms"),
        passed=seen.value <= DIAL_MILLISECONDS_MAX,
    )


async def circuit_row(folder: Path, rounds: int) -> Row:
    """What a far end pours, through a relay and without."""
    with circuit.triangle(folder) as (pids, relay, far):
        async with (
            circuit.near_end(folder, "near-circuit", relay) as round_about,
            circuit.near_end(folder, "near-direct", relay) as straight,
        ):

            async def poured(near: circuit.Near, address: str) -> float:
                return await circuit.pour(await near.open(address), CIRCUIT_MEGABYTES)

            seen = await compare(
                rounds,
                partial(poured, round_about, far[-1]),
                partial(poured, straight, far[0]),
                pids,
                more_is_better=True,
            )
    return Row(
        "poured through a circuit, MB/s",
        f"≥ {CIRCUIT_MEGABYTES_PER_SECOND_MIN}",
        seen.value,
        seen.best,
        "the same over a direct connection",
        seen.baseline,
        seen.ratio,
        _cpu(seen, CIRCUIT_MEGABYTES, 1e3, "ms"),
        passed=seen.value >= CIRCUIT_MEGABYTES_PER_SECOND_MIN,
        note=f"three processes on {os.cpu_count()} cores, each byte sealed twice and opened twice",
    )


def _cpu(seen: Compared, units: int, scale: float, unit: str) -> str:
    each, bare = (cpu / units * scale for cpu in (seen.cpu_seconds, seen.baseline_cpu_seconds))
    return f"{each:.3g} {unit} each, {bare:.3g} bare"


async def measure(folder: Path, rounds: int) -> list[Row]:
    """All rows."""
    with trio.fail_after(SECONDS_MAX):
        rows = await link_rows(folder, rounds)
        return [*rows, await circuit_row(folder, rounds // 10), await memory_row(folder)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=60, help="of lone round trips, 40 each")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    configure_logging("error", "text")
    with tempfile.TemporaryDirectory(prefix="aimo-link-") as folder:
        try:
            rows = trio.run(measure, Path(folder), max(options.rounds, 10))
        except trio.TooSlowError:
            sys.exit(f"not done within {SECONDS_MAX:.0f} s: this machine has other work to do")
    if options.json:
        document = {"machine": describe_machine(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    print(describe_machine(), HEADER, *rows, sep="\n")
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")


if __name__ == "__main__":
    main()
