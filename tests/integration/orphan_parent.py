"""A node in miniature for `test_llama_engine`: starts a llama engine and is killed.

Usage: orphan_parent.py STATE_FOLDER. Says ``ready`` on standard error, then sleeps.
"""

import sys
from pathlib import Path

import trio

from aimo_node.ports.engine import EngineSettings
from providers.registry import create_engine


async def main():
    engine = create_engine("llama", EngineSettings(Path(sys.argv[1])))
    await engine.run(lambda: sys.stderr.write("ready\n"), lambda line: None)


trio.run(main)
