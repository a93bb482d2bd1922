"""Turns a line that vLLM 0.32 prints while it starts into a line of progress. Pure."""

from __future__ import annotations

import re
from typing import Final

from aimo_node.domain.models import EngineState

Step = tuple[str, EngineState]
"""What to tell, and which state it means."""

_DOWNLOADING: Final = EngineState.DOWNLOADING
_INSTALLED: Final = EngineState.INSTALLED
_STARTING: Final = EngineState.STARTING

_STEPS: Final[tuple[tuple[str, str, EngineState], ...]] = (
    (r"\bversion (\d+\.\d\S*)$", "vLLM {0} is starting", _STARTING),
    (r"^Resolved architecture: (\w+)", "its architecture is {0}", _STARTING),
    (r"^Fetching \d+ files: +(\d+)%", "downloading {0} %", _DOWNLOADING),
    (r"^Downloading .*?(\d+)%\|", "downloading {0} %", _DOWNLOADING),
    (r"^[\w./-]+\.(?:safetensors|bin|pt|gguf|json): +(\d+)%\|", "downloading {0} %", _DOWNLOADING),
    (r"^Time spent downloading weights .*: (\d+)", "downloaded in {0} s", _INSTALLED),
    (r"^Starting to load model", "loading weights", _STARTING),
    (r"^(?:Multi-thread l|L)oading .*?: +(\d+)% Completed", "loading weights {0} %", _STARTING),
    (r"^Model loading took (\S+) GiB", "weights are loaded, {0} GiB", _STARTING),
    (r"^Loading weights took", "weights are loaded", _STARTING),
    (r"^Loading (?:drafter|lora|LoRA)", "loading adapters", _STARTING),
    (r"^(?:\[\w+\] )?Dynamo bytecode transform", "compiling", _STARTING),
    (r"^(?:\[\w+\] )?Compiling a graph", "compiling", _STARTING),
    (r"^Warming up model for the compilation", "compiling", _STARTING),
    (r"^(?:\[\w+\] )?Directly load", "loading what was compiled before", _STARTING),
    (r"^(?:\[\w+\] )?torch\.compile took (\d+)", "compiled in {0} s", _STARTING),
    (r"^Capturing CUDA graphs.*?: +(\d+)%", "capturing CUDA graphs {0} %", _STARTING),
    (r"^Graph capturing finished in (\d+)", "captured CUDA graphs in {0} s", _STARTING),
    (r"KV cache size: ([\d,]+) tokens", "room for {0} tokens in the cache", _STARTING),
    (r"[Aa]utotun(?:e|ing).*(?:start|begin)", "tuning kernels", _STARTING),
    (r"^init engine .* took (\d+)", "warmed up in {0} s", _STARTING),
    (r"^Warming up", "warming up", _STARTING),
    (r"^Starting vLLM server", "opening its socket", _STARTING),
)
_COMPILED: Final = tuple((re.compile(pattern), text, state) for pattern, text, state in _STEPS)

_WORDS: Final = re.compile(
    r"version|rchitecture|%|downloading|oad|Dynamo|ompil|Captur|captur|KV cache|utotun|init"
    r"|Warming|Starting"
)
"""Most lines hold none of these, and are done with at once."""


def step_of(line: str) -> Step | None:
    """The progress that a line tells; None for most lines.

    Args:
        line: as `providers.vllm.output.plain_line` gives it.
    """
    if not _WORDS.search(line):
        return None
    for pattern, text, state in _COMPILED:
        if found := pattern.search(line):
            return text.format(*found.groups()), state
    return None
