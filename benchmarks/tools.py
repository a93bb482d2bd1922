"""The load generator and the mock upstream: C programs, compiled on first use."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "load"


def build(name: str) -> Path:
    """The compiled program, in a folder named by its source's hash."""
    source = SOURCES / f"{name}.c"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("benchmarks need a C compiler: apt-get install gcc (or your system's)")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"aimo-benchmarks-{digest}"
    program = folder / name
    if not program.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


@dataclass(frozen=True, slots=True)
class Load:
    """One way of asking: `streams` at a time, each chunk `delay_us` after the one before.

    `streams` without `delay_us` (None) are plain JSON requests.
    """

    name: str
    streams: int
    delay_us: int | None = None
    tokens: int = 100

    def arguments(self, port: int, model: str, seconds: float) -> list[str]:
        """The load generator's arguments."""
        common = ["--port", str(port), "--model", model, "--conns", str(self.streams)]
        common += ["--duration", str(seconds), "--warmup", str(self.warmup_seconds)]
        if self.delay_us is None:
            return common
        ramp = str(min(2.0, self.streams / 256))
        stream = ["--stream", "--tokens", str(self.tokens), "--delay-us", str(self.delay_us)]
        return [*common, *stream, "--ramp", ramp]

    @property
    def warmup_seconds(self) -> float:
        """Long enough for the ramp and one round of answers."""
        return 0.5 if self.delay_us is None else 1.0 + min(3.0, self.streams / 256)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the load generator saw; times in ms."""

    per_second: float
    total_p50: float
    first_p50: float
    first_p99: float
    late_p50: float
    late_p99: float
    bad: int
    first_error: str


def read_outcome(output: str, load: Load) -> Outcome:
    """The load generator's JSON line as an `Outcome`."""
    seen = json.loads(output)
    rate = seen["rps"] if load.delay_us is None else seen["chunks_per_s"]
    return Outcome(
        per_second=rate,
        total_p50=seen["total_us"]["p50"] / 1e3,
        first_p50=seen["ttft_us"]["p50"] / 1e3,
        first_p99=seen["ttft_us"]["p99"] / 1e3,
        late_p50=seen["oneway_us"]["p50"] / 1e3,
        late_p99=seen["oneway_us"]["p99"] / 1e3,
        bad=seen["bad"] + seen["conn_errors"],
        first_error=seen["first_error"][:100],
    )
