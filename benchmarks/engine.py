"""What a token from an engine's socket costs the node, against a bare reader of the same stream.

    python -m benchmarks.engine            three rounds of everything, four minutes
    python -m benchmarks.engine --quick    one round, a minute and a half
    python -m benchmarks.engine --only "64 x 10 ms,64 llama"

The engine port is called as a provider calls it, and its answers end in a sink that counts. CPU is
user plus system time of this process alone, without the child that makes the tokens, and holds
all of it: connecting, heads, parsing, the ends of answers, the counting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from aimo_node.ports.engine import Engine, EngineSettings
from aimo_node.telemetry.logs import configure_logging
from benchmarks.bare_reader import BareReader
from benchmarks.machine import describe_machine
from benchmarks.token_readers import Sample, read_engine, run_beside
from benchmarks.tools import build
from providers.children.socket_folder import is_listening
from providers.registry import create_engine

LLAMA_TOKENS = 900
"""Near the demo model's context: prompts are worked off one after the other, and long answers
keep all slots busy."""

STORY = "Tell me a sea story about Ada and a kite."

BARE, SOCKET, ECHO, LLAMA = "bare reader", "engine, socket", "echo, no socket", "llama, socket"
HEADER = (
    f"{'load':20}{'way':17}{'token/s':>9}{'CPU us':>8}{'min':>7}{'max':>7}{'ratio':>7}"
    f"{'late50':>8}{'late99':>8}{'first50':>9}{'first99':>9}"
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for, and how.

    Attributes:
        delay_us: from one token to the next; None is what llama.cpp makes of it.
        in_step: all streams get their tokens at the same moments, as from an engine that computes
            them in one batch.
    """

    name: str
    streams: int
    delay_us: int | None
    tokens: int = 200
    in_step: bool = False
    ways: Sequence[str] = (BARE, SOCKET, ECHO)

    def body(self) -> dict[str, Any]:
        """A request."""
        if self.delay_us is None:
            told = [{"role": "user", "content": STORY}]
            return {
                "messages": told,
                "max_tokens": self.tokens,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
            }
        content = f"say it mock-tokens={self.tokens} mock-delay-us={self.delay_us}"
        return {"messages": [{"role": "user", "content": content}], "stream": True}


LOADS = (
    Load("1 x 10 ms", 1, 10_000),
    Load("64 x 10 ms", 64, 10_000),
    Load("64 x 10 ms in step", 64, 10_000, in_step=True, ways=(BARE, SOCKET)),
    Load("64 x 40 ms", 64, 40_000, tokens=50),
    Load("256 x 10 ms", 256, 10_000),
    Load("64 flat out", 64, 0, tokens=400),
    Load("64 llama slots", 64, None, LLAMA_TOKENS, ways=(BARE, LLAMA)),
)


@contextmanager
def mock_child(path: Path, *, in_step: bool) -> Iterator[None]:
    """A child that answers like echo, over a Unix socket in OpenAI's dialect."""
    command = [str(build("mock_upstream")), "--unix", str(path)]
    child = subprocess.Popen([*command, "--in-step"] if in_step else command)
    try:
        while not is_listening(path) and child.poll() is None:
            time.sleep(0.01)
        yield
    finally:
        child.terminate()
        child.wait()


def measure(way: str, load: Load, folder: Path, seconds: float) -> Sample:
    """One way with a child of its own."""
    if way in {ECHO, LLAMA}:
        return _read(_engine(way, folder, load), load, seconds)
    body = json.dumps(load.body()).encode()
    if load.delay_us is None:
        engine = _engine(LLAMA, folder, load)
        path = folder / "llama.sock"
        return trio.run(
            run_beside, engine, lambda: BareReader(path, body, load.streams).read(seconds)
        )
    path = folder / "mock.sock"
    with mock_child(path, in_step=load.in_step):
        if way == BARE:
            return BareReader(path, body, load.streams).read(seconds)
        return _read(_engine(way, folder, load, f"unix:{path}"), load, seconds)


def _engine(way: str, folder: Path, load: Load, endpoint: str = "") -> Engine:
    """`SOCKET`: the openai engine, whose way from socket to sink is that of all with a child."""
    if way == ECHO:
        settings = EngineSettings(
            folder, "echo", engine_args=["--stamp"], requests_max=load.streams
        )
        return create_engine("echo", settings)
    name = "llama" if way == LLAMA else "openai"
    return create_engine(name, EngineSettings(folder, "", endpoint, requests_max=load.streams))


def _read(engine: Engine, load: Load, seconds: float) -> Sample:
    return trio.run(read_engine, engine, load.body(), load.streams, seconds)


def show(load: Load, way: str, samples: Sequence[Sample], bare: Sequence[Sample]) -> None:
    """One line: medians over the rounds, and the spread of the CPU time."""
    spent = [sample.cpu_us for sample in samples]
    ratio = ""
    if bare:
        ratio = f"{statistics.median(spent) / statistics.median(one.cpu_us for one in bare):.1f}"
    print(
        f"{load.name:20}{way:17}{_median(samples, lambda one: one.per_second):9.0f}"
        f"{statistics.median(spent):8.1f}{min(spent):7.1f}{max(spent):7.1f}{ratio:>7}"
        f"{_median(samples, lambda one: _at(one.late_ms, 0.5)):8.2f}"
        f"{_median(samples, lambda one: _at(one.late_ms, 0.99)):8.2f}"
        f"{_median(samples, lambda one: _at(one.first_ms, 0.5)):9.2f}"
        f"{_median(samples, lambda one: _at(one.first_ms, 0.99)):9.2f}",
        flush=True,
    )


def _median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.median(value(sample) for sample in samples)


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time per way")
    parser.add_argument("--only", help="loads by the beginnings of their names, comma-separated")
    options = parser.parse_args()
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    loads = [load for load in LOADS if load.name.startswith(wanted)]
    configure_logging("warning", "text")
    print(describe_machine(), HEADER, sep="\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="aimo-engine-") as temporary:
        for load in loads:
            samples: dict[str, list[Sample]] = {way: [] for way in load.ways}
            # All ways in each round, so that noise falls on all alike.
            for _ in range(1 if options.quick else options.rounds):
                for way in load.ways:
                    sample = measure(way, load, Path(temporary), options.seconds)
                    samples[way].append(sample)
            for way, found in samples.items():
                show(load, way, found, samples.get(BARE, []))


if __name__ == "__main__":
    main()
