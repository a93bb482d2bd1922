"""One routing decision among many providers, against one among ten.

python -m benchmarks.routing
"""

from __future__ import annotations

import argparse
import time

from aimo_node.domain.ids import ModelName, PeerId
from aimo_node.domain.models import Descriptor, EngineState, Health, Load, ModelInfo, Status
from aimo_node.routing.policy import RouteRequest, choose
from aimo_node.routing.table import RoutingTable
from benchmarks.machine import describe_machine

RELAY = PeerId("relay")
MODEL = ModelName("model")


def table_of(count: int) -> RoutingTable:
    """Providers of one model, every one differently busy."""
    table = RoutingTable()
    for number in range(count):
        peer = PeerId(f"provider {number}")
        offer = (ModelInfo(MODEL),)
        described = Descriptor(
            peer, 1, offer, engine_state=EngineState.RUNNING, requests_max=100, revision=1
        )
        table.describe(RELAY, described, 0.0)
        load = Load(running=number % 90)
        table.report(RELAY, Status(peer, 1, 1, Health.HEALTHY, load), 0.0)
    return table


def measure(table: RoutingTable, rounds: int) -> tuple[float, float]:
    """Median and 99th percentile of a decision, in µs of CPU."""
    took = []
    for _ in range(rounds):
        started = time.thread_time()
        decision = choose(RouteRequest(MODEL), table, 1.0)
        took.append(time.thread_time() - started)
        table.begun(decision.candidates[0].peer)
        table.ended(decision.candidates[0].peer, failed=False, now=1.0)
    took.sort()
    return took[rounds // 2] * 1e6, took[rounds * 99 // 100] * 1e6


def main() -> None:
    """Print a line for each size of the mesh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5_000)
    options = parser.parse_args()
    print(describe_machine())
    print(f"{'providers':>10}{'p50 µs':>10}{'p99 µs':>10}{'ratio':>8}")
    baseline = 0.0
    for count in (10, 100, 1_000, 10_000):
        median, worst = measure(table_of(count), options.rounds)
        baseline = baseline or median
        print(f"{count:>10}{median:>10.1f}{worst:>10.1f}{median / baseline:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
