"""Turns the end of vLLM's log into one sentence that says what is wrong and what helps. Pure.

A failed start prints some three hundred lines: the traceback of each process, each with the
failures of those it waited for. The patterns are tried in order, the causes before what they cause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

WORDS_MAX: Final = 300
"""Characters of vLLM's own words in a sentence."""

_PATTERNS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"^No vLLM is installed for (.+)",
        "{0} has no vLLM: pip install 'aimo-node[vllm]', or name the Python of an environment "
        'that has it with --engine-args "--python /path/to/bin/python"',
    ),
    (
        r"No space left on device|Errno 28",
        "the disk is full: make room, or let HF_HOME name a folder on a larger disk",
    ),
    (
        r"401 Client Error|[Ii]nvalid (?:user )?token|must have access to it and be authenticated",
        "the hub gives {model} only to those who log in: accept its terms on its page there, and "
        "start the node with HF_TOKEN",
    ),
    (
        r"403 Client Error|gated repo|not in the authorized list",
        "the hub does not give {model} to this account: ask for access on its page there, and "
        "start the node with that account's HF_TOKEN",
    ),
    (
        r"is not a valid model identifier|RepositoryNotFoundError|Repository Not Found",
        "the hub has no model {model}, or it is private: check the name, or start the node with "
        "an HF_TOKEN that may read it",
    ),
    (
        r"RevisionNotFoundError|is not a valid git identifier",
        "the hub has no such revision of {model}: check --revision",
    ),
    (
        r"[Cc]ouldn't connect to '?([^' ]+)|LocalEntryNotFoundError|outgoing traffic has been "
        r"disabled|[Nn]ame resolution|Max retries exceeded",
        "the hub cannot be reached and {model} is not on this disk: check the network, or name "
        "the folder of a model you have",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|no "
        r"CUDA-capable device|NVML Shared Library Not Found|[Cc]annot find any GPU",
        "there is no graphics card that vLLM can use: check with nvidia-smi that the driver "
        "works, or take the llama engine, which needs none",
    ),
    (
        r"(lib(?:cuda|cudart|cublas|nccl|nvrtc)[\w.-]*\.so[\w.]*): cannot open|CUDA driver version "
        r"is insufficient|driver .* too old|no kernel image is available",
        "this vLLM was built for another CUDA than this machine's driver has: update the driver, "
        "or install the vLLM that fits it",
    ),
    (
        r"Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\).* is less than desired",
        "another program holds the graphics card's memory, only {0} of {1} GiB are free: end it, "
        "or add a lower --gpu-memory-utilization to --engine-args",
    ),
    (
        r"max seq len \((\d+)\).*?([\d.]+) GiB KV cache is needed.*?\(([\d.]+) GiB\)"
        r".*?estimated maximum model length is (\d+)",
        "the memory left beside the weights holds {2} GiB of cache, a request of {0} tokens needs "
        "{1}: add --max-model-len {3} to --engine-args, or use a larger card",
    ),
    (
        r"max seq len \((\d+)\).*?([\d.]+) GiB KV cache is needed.*?\(([\d.]+) GiB\)",
        "the memory left beside the weights holds {2} GiB of cache, a request of {0} tokens needs "
        "{1}: add a smaller --max-model-len to --engine-args, or use a larger card",
    ),
    (
        r"No available memory for the cache blocks",
        "the weights leave no memory for the cache: add --gpu-memory-utilization 0.95 to "
        "--engine-args, take a smaller or quantized model, or more cards "
        "(--tensor-parallel-size 2)",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|HIP out of memory|CUDA error: out of memory",
        "the graphics card is too small for {model}: take a smaller or quantized model, a shorter "
        "--max-model-len, or more cards (--tensor-parallel-size 2)",
    ),
    (
        r"Not enough memory|Available memory on node .* is less than|[Cc]annot allocate memory"
        r"|DefaultCPUAllocator",
        "there is not enough main memory for {model}: take a smaller model, or a smaller cache "
        "(VLLM_CPU_KVCACHE_SPACE, --kv-cache-memory-bytes)",
    ),
    (
        r"max_model_len \((\d+)\) is greater than the derived max_model_len .*?=(\d+)",
        "{model} takes at most {1} tokens, not {0}: correct --max-model-len in --engine-args",
    ),
    (
        r"invalid tool call parser: (\S+)",
        "vLLM has no tool parser {0}: correct --tool-call-parser in --engine-args, or say none",
    ),
    (
        r"^\S+: error: (.+)",
        "it refuses its arguments ({0}): correct --engine-args",
    ),
    (
        r"must be divisible by tensor parallel size|World size \(\d+\) is larger than the number "
        r"of available GPUs|tensor[-_ ]parallel[-_ ]size .* (?:larger|exceed)",
        "--tensor-parallel-size in --engine-args does not fit this model or this machine's cards",
    ),
    (
        r"No adapter found for ([^\s',]+)",
        "there is no LoRA adapter in {0}: correct --lora-modules in --engine-args",
    ),
    (
        r"LoRA rank (\d+) is greater than max_lora_rank",
        "a LoRA adapter has rank {0}, more than expected: add --max-lora-rank {0} to --engine-args",
    ),
    (
        r"Cannot find any model weights",
        "there are no weights in {model}: is its download complete?",
    ),
    (
        r"SafetensorError|[Ee]rror while deserializing header|invalid load key|PytorchStreamReader"
        r"|parse_safetensors_file_metadata|failed finding central directory",
        "a file with weights of {model} is damaged: delete it and let it be downloaded again",
    ),
    (
        r"The size of tensor a .* must match|size mismatch|Attempted to load weight|shape mismatch",
        "the weights of {model} do not fit its config.json: get both anew from the same place",
    ),
    (
        r"does not recognize this architecture|are not supported for now|has no vLLM implementation"
        r"|Model architectures \[?(.+?)\]? (?:are|failed)",
        "this vLLM does not know the architecture of {model}: install a newer vLLM, or take "
        "another model",
    ),
    (
        r"trust_remote_code|contains custom code which must be executed",
        "{model} brings Python code of its own: if you trust its authors, add "
        "--trust-remote-code to --engine-args",
    ),
    (
        r"Invalid repository ID or local directory|does not appear to have a file named config"
        r"|Repo id must be in the form|Can't load the configuration",
        "{model} is no folder of a model with a config.json, and no name at the hub",
    ),
    (
        r"Address already in use|Errno 98",
        "its socket is taken: does another node run with the same --state?",
    ),
    (r"Permission denied: '?([^']+)", "it may not read {0}: correct the rights of that file"),
    (r"Too many open files", "it may not open enough files: raise the limit with ulimit -n 65536"),
)
_COMPILED: Final = tuple((re.compile(pattern), sentence) for pattern, sentence in _PATTERNS)

# The start of every log says these, whether anything is wrong or not.
_HARMLESS: Final = re.compile(
    r"Found ulimit of|DeprecationWarning|FutureWarning|^\s*warnings\.warn"
)

_ERROR: Final = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)): (.+)")
_HOLLOW: Final = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Worker failed with error|"
    r"validation error for|EngineDeadError|cancelled"
)
_VALUE_ERROR: Final = re.compile(r"^\s*Value error, (.+?)(?: \[type=.*)?$")


def explain(lines: Sequence[str], model: str, ending: str) -> str:
    """What stopped vLLM, as a phrase that follows ``vLLM cannot serve MODEL:``.

    Args:
        lines: the last ones it printed, see `providers.vllm.output`.
        model: as the owner named it.
        ending: how its process ended, for when nothing else is known.
    """
    told = [line for line in lines if not _HARMLESS.search(line)]
    for pattern, sentence in _COMPILED:
        for line in told:
            if found := pattern.search(line):
                words = [_short(group) for group in found.groups("")]
                return sentence.format(*words, *[""] * 4, model=model)
    return _last_error(told) or f"it {ending}"


def _last_error(lines: Sequence[str]) -> str:
    """In vLLM's own words: the first error that is not only the echo of another one."""
    for line in lines:
        if found := _VALUE_ERROR.match(line):
            return _short(found[1])
        found = _ERROR.match(line.strip())
        if found and not _HOLLOW.search(line):
            return _short(f"{found[1]}: {found[2]}")
    return ""


def _short(words: str) -> str:
    return " ".join(words.split())[:WORDS_MAX]
