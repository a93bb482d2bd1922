"""A node in miniature for `test_vllm_engine`: starts a vllm engine and is killed.

Usage: vllm_parent.py STATE_FOLDER PYTHON. Says ``ready`` on standard error, then sleeps.
"""

import sys
from pathlib import Path

import trio

from aimo_node.ports.engine import EngineSettings
from providers.registry import create_engine


def ignore(line, state=None):
    """Progress is for people."""


async def main():
    arguments = ["--python", sys.argv[2]]
    settings = EngineSettings(Path(sys.argv[1]), "somebody/stand-in", engine_args=arguments)
    engine = create_engine("vllm", settings)
    await engine.run(lambda: sys.stderr.write("ready\n"), ignore)


trio.run(main)
