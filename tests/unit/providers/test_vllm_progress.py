"""What vLLM prints while it starts becomes a few lines of progress, and the right states."""

import pytest

from aimo_node.domain.models import EngineState
from aimo_node.testing.vllm_standin import START_LOG
from providers.children.bounded_log import BoundedLog
from providers.vllm.output import LINES_MAX, Output, plain_line
from providers.vllm.progress import step_of

DOWNLOADING = EngineState.DOWNLOADING
INSTALLED = EngineState.INSTALLED
STARTING = EngineState.STARTING


@pytest.fixture
def heard():
    return []


@pytest.fixture
def written(tmp_path, heard):
    log = BoundedLog(tmp_path / "vllm.log")
    yield Output(log, heard.append)
    log.close()


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_real_start_is_told_step_by_step(written, heard, piece):
    """However its output is cut."""
    log = START_LOG.read_bytes()
    for start in range(0, len(log), piece):
        written.write(log[start : start + piece])
    steps = [step[0] for step in map(step_of, heard) if step]
    assert steps == [
        "vLLM 0.32.0 is starting",
        "its architecture is LlamaForCausalLM",
        "loading weights",
        "loading weights 0 %",
        "loading weights 100 %",
        "weights are loaded",
        "compiling",
        "warming up",
        "room for 419,328 tokens in the cache",
        "warmed up in 46 s",
        "opening its socket",
    ]


@pytest.mark.parametrize(
    ("line", "text", "state"),
    [
        ("Fetching 5 files:  40%|████      | 2/5 [00:10<00:15]", "downloading 40 %", DOWNLOADING),
        (
            "model-00001-of-00002.safetensors:  45%|████▌     | 1.2G/2.7G [00:10<00:12, 120MB/s]",
            "downloading 45 %",
            DOWNLOADING,
        ),
        (
            "Time spent downloading weights for Qwen/Qwen3-0.6B: 12.345678 seconds",
            "downloaded in 12 s",
            INSTALLED,
        ),
        (
            "Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:00<00:01,  1.42it/s]",
            "loading weights 33 %",
            STARTING,
        ),
        (
            "Multi-thread loading shards:  50% Completed | 2/4 [00:01<00:01,  1.9it/s]",
            "loading weights 50 %",
            STARTING,
        ),
        (
            "Model loading took 15.27 GiB memory and 8.123456 seconds",
            "weights are loaded, 15.27 GiB",
            STARTING,
        ),
        (
            "[backbone] Dynamo bytecode transform time: 4.12 s",
            "compiling",
            STARTING,
        ),
        ("torch.compile took 42.12 s in total", "compiled in 42 s", STARTING),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  45%|████▍     | 30/67",
            "capturing CUDA graphs 45 %",
            STARTING,
        ),
        (
            "Graph capturing finished in 12 secs, took 0.55 GiB",
            "captured CUDA graphs in 12 s",
            STARTING,
        ),
        ("GPU KV cache size: 1,419,328 tokens", "room for 1,419,328 tokens in the cache", STARTING),
    ],
)
def test_line_is_told(line, text, state):
    assert step_of(line) == (text, state)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Available routes are:",
        "Route: /v1/models, Methods: GET",
        "Using max model len 1024",
        "Supported tasks: ['generate']",
        "the user asked for version 3 of the story",
        "100%",
    ],
)
def test_other_lines_are_not_told(line):
    assert step_of(line) is None


def test_who_says_a_line_and_when_is_cut_off():
    line = b"(Worker_TP0 pid=29981) ERROR 11-20 15:37:59 [multiproc_executor.py:953] OSError: no"
    assert plain_line(line) == "OSError: no"
    assert plain_line(b"\x1b[36m(EngineCore pid=7)\x1b[0m INFO 11-20 15:30:19 [core.py:1] x") == "x"


def test_lines_kept_at_hand_are_bounded(written):
    written.write(b"one line\n" * (2 * LINES_MAX) + b"x" * 1_000_000)
    assert len(written.lines()) <= LINES_MAX + 1
    assert all(len(line) <= 600 for line in written.lines())
    written.begin("again")
    assert written.lines() == []


def test_unfinished_last_line_is_heard_too(written):
    written.write(b"ValueError: cut off by the end")
    assert written.lines() == ["ValueError: cut off by the end"]
