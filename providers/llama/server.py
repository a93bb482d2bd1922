"""The program of the llama engine's child process: llama.cpp's server on a Unix socket.

Started by `providers.engines.llama` as ``python -m providers.llama.server SETTINGS``. It tells the
node on standard output, in one line, ``ready`` or ``failed``; everything llama.cpp prints goes to
standard error. It imports neither trio nor the node, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from providers.children.parent_watch import die_with_parent

LOG_ERRORS_AND_WARNINGS = 2


def main() -> None:
    """Serve until killed; SETTINGS is a JSON object, see `_parameters`."""
    die_with_parent()
    # Whatever native code prints must not be taken for our own line.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        import xllamacpp  # noqa: PLC0415 (a missing library must be reported, not printed)

        server = xllamacpp.Server(_parameters(xllamacpp, json.loads(sys.argv[1])))
    except (ImportError, RuntimeError, OSError) as error:
        print("failed", error, file=answers, flush=True)
        sys.exit(1)
    print("ready", server.listening_address, file=answers, flush=True)
    while True:
        signal.pause()


def _parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:  # noqa: ANN401 (untyped library)
    """llama.cpp's parameters.

    Args:
        settings: model, name, socket, slots, context_tokens (of one slot), threads, gpu_layers,
            embeddings, pooling (-1 takes the model's own), check_tensors.
    """
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.model_alias = {settings["name"]}
    parameters.hostnames = [settings["socket"]]
    parameters.n_parallel = settings["slots"]
    parameters.n_ctx = settings["context_tokens"] * settings["slots"]
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.cpuparams_batch.n_threads = settings["threads"]
    parameters.n_gpu_layers = settings["gpu_layers"]
    # Every running answer holds an HTTP thread; probes and token counts need some more.
    parameters.n_threads_http = settings["slots"] + 4
    parameters.use_jinja = True
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.ui = False
    parameters.warmup = False
    # This cache in main memory is shared by all consumers; slots are told apart by the node.
    parameters.cache_ram_mib = 0
    parameters.check_tensors = settings["check_tensors"]
    if settings["embeddings"]:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type(settings["pooling"])
        # A text to embed must fit into one step of the computation.
        parameters.n_batch = parameters.n_ubatch = settings["context_tokens"]
    parameters.verbosity = LOG_ERRORS_AND_WARNINGS
    return parameters


if __name__ == "__main__":
    main()
