"""Each way in which vLLM fails to start is told in one sentence with the fix.

The logs in `vllm_logs` were written by vLLM 0.32 when it was made to fail so; only paths were
changed and what says nothing left out. What needs a graphics card is quoted from vLLM's and
PyTorch's sources.
"""

from pathlib import Path

import pytest

from providers.vllm.failures import explain
from providers.vllm.output import plain_line

LOGS = Path(__file__).parent / "vllm_logs"


def told(text):
    lines = [plain_line(line.encode()) for line in text.splitlines()]
    return explain(lines, "some/model", "ended with exit code 1")


@pytest.mark.parametrize(
    ("log", "cause", "fix"),
    [
        ("wrong-name", "the hub has no model some/model", "check the name"),
        ("gated", "does not give some/model to this account", "ask for access"),
        ("locked", "only to those who log in", "HF_TOKEN"),
        ("no-network", "the hub cannot be reached", "check the network"),
        ("full-disk", "the disk is full", "HF_HOME"),
        ("cut-weights", "a file with weights of some/model is damaged", "delete it"),
        ("garbled-weights", "a file with weights of some/model is damaged", "delete it"),
        ("no-weights", "no weights in some/model", "is its download complete"),
        ("wrong-shape", "do not fit its config.json", "get both anew"),
        ("too-long", "takes at most 1024 tokens, not 8192", "--max-model-len"),
        ("small-cache", "holds 1.0 GiB of cache", "add --max-model-len 419200"),
        ("little-memory", "not enough main memory", "smaller"),
        ("no-folder", "no folder of a model", "no name at the hub"),
        ("no-config", "no folder of a model", "no name at the hub"),
        ("socket-taken", "its socket is taken", "--state"),
        ("unknown-architecture", "does not know the architecture", "install a newer vLLM"),
        ("no-adapter", "no LoRA adapter in /no/such/lora", "--lora-modules"),
        ("bad-parallel", "--tensor-parallel-size", "does not fit"),
        ("bad-parser", "no tool parser nosuch", "--tool-call-parser"),
        ("bad-argument", "unrecognized arguments: --no-such-flag", "correct --engine-args"),
        ("bad-value", "argument --max-model-len: invalid", "correct --engine-args"),
    ],
)
def test_real_failure_is_explained(log, cause, fix):
    sentence = told((LOGS / f"{log}.log").read_text(encoding="utf-8"))
    assert cause in sentence
    assert fix in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_every_real_log_is_tested():
    tested = {
        parameters.values[0] if hasattr(parameters, "values") else parameters[0]
        for mark in test_real_failure_is_explained.pytestmark
        for parameters in mark.args[1]
    }
    assert tested == {path.stem for path in LOGS.glob("*.log")}


@pytest.mark.parametrize(
    ("line", "cause", "fix"),
    [
        (
            "RuntimeError: Failed to infer device type, please set the environment variable "
            "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
            "no graphics card that vLLM can use",
            "nvidia-smi",
        ),
        (
            "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an "
            "NVIDIA GPU and installed a driver",
            "no graphics card that vLLM can use",
            "llama engine",
        ),
        ("RuntimeError: No CUDA GPUs are available", "no graphics card", "nvidia-smi"),
        (
            "ImportError: libcudart.so.13: cannot open shared object file: No such file or "
            "directory",
            "built for another CUDA",
            "update the driver",
        ),
        (
            "(EngineCore pid=7) ERROR 11-20 15:37:59 [core.py:1510] torch.OutOfMemoryError: CUDA "
            "out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.78 GiB of "
            "which 1.02 GiB is free.",
            "the graphics card is too small for some/model",
            "--tensor-parallel-size 2",
        ),
        (
            "ValueError: Free memory on device cuda:0 (3.21/7.78 GiB) on startup is less than "
            "desired GPU memory utilization (0.92, 7.15 GiB). Decrease GPU memory utilization or "
            "reduce GPU memory used by other processes.",
            "only 3.21 of 7.78 GiB are free",
            "--gpu-memory-utilization",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing "
            "`gpu_memory_utilization` when initializing the engine",
            "no memory for the cache",
            "--gpu-memory-utilization 0.95",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (40960), (4.38 "
            "GiB KV cache is needed, which is larger than the available KV cache memory (2.5 GiB). "
            "Try increasing `gpu_memory_utilization`",
            "a request of 40960 tokens needs 4.38",
            "smaller --max-model-len",
        ),
        (
            "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
            "has rank 64",
            "--max-lora-rank 64",
        ),
        (
            "No vLLM is installed for /usr/bin/python3",
            "/usr/bin/python3 has no vLLM",
            "pip install 'aimo-node[vllm]'",
        ),
        ("OSError: [Errno 24] Too many open files", "enough files", "ulimit -n"),
    ],
)
def test_failure_of_other_machines_is_explained(line, cause, fix):
    sentence = told(line)
    assert cause in sentence
    assert fix in sentence


def test_cause_is_told_not_what_it_caused():
    """The API server's own traceback comes last and says only that another process failed."""
    log = (LOGS / "cut-weights.log").read_text(encoding="utf-8")
    assert "Engine core initialization failed" in log
    assert "damaged" in told(log)


def test_unknown_failure_is_told_in_vllms_own_words():
    lines = (
        "Traceback (most recent call last):\n"
        "(EngineCore pid=1) ERROR 11-20 15:37:59 [core.py:10] ValueError: the moon is full\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core\n"
    )
    assert told(lines) == "ValueError: the moon is full"


def test_pydantics_error_is_told_without_its_frame():
    lines = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Nobody can do that. [type=value_error, input_value=Args(...)]\n"
    )
    assert told(lines) == "Nobody can do that."


def test_process_that_says_nothing_is_told_by_its_end():
    assert told("") == "it ended with exit code 1"


def test_warning_at_every_start_is_not_taken_for_the_cause():
    line = "WARNING [system_utils.py:255] Found ulimit of 20000 … OSError: [Errno 24] Too many open"
    assert told(line) == "it ended with exit code 1"
