"""What 100 links keep resident in the process that holds them; for `benchmarks.link`.

    python -m benchmarks.link_memory dialled FOLDER
    python -m benchmarks.link_memory accepted FOLDER

Each way in a process of its own, since what was freed before hides what is taken.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from aimo_node.domain.join import peer_of_address
from aimo_node.telemetry.logs import configure_logging
from benchmarks.link_child import ECHO_PROTOCOL, LISTEN
from benchmarks.link_near import Near, near_node
from benchmarks.processes import far_end, far_process, used

LINKS: Final = 100
WARM_UPS: Final = 4
"""Links made before anything is measured: the first ones load what all share."""


async def dialled(folder: Path) -> dict[str, float]:
    """Megabytes: bare connections to some nodes, links to others, and a request over each."""
    with far_end(folder, 2 * LINKS + WARM_UPS) as (_, addresses):
        async with near_node(folder, "near", addresses[0]) as near:
            for address in addresses[:WARM_UPS]:
                await _to(near, address).ask(b"1")
            start = _resident()
            for address in addresses[WARM_UPS:-LINKS]:
                await _to(near, address).bare(ECHO_PROTOCOL)
            bare = _resident() - start
            start = _resident()
            for address in addresses[-LINKS:]:
                await near.network.connect(_to(near, address).far)
            idle = _resident() - start
            for address in addresses[-LINKS:]:
                await _to(near, address).ask(b"1")
            return {"bare": bare, "idle": idle, "used": _resident() - start}


async def accepted(folder: Path) -> dict[str, float]:
    """Megabytes of links that as many other nodes have dialled."""
    async with near_node(folder, "near", "", LISTEN) as near:
        with ExitStack() as stack:

            async def arrive(count: int) -> float:
                theirs = folder / f"others-{count}"
                theirs.mkdir()
                wanted = near.network.statistics().links_open + count
                address = near.host.addresses()[0]
                stack.enter_context(far_process(theirs, count, address))
                while near.network.statistics().links_open < wanted:  # noqa: ASYNC110 (nobody tells)
                    await trio.sleep(0.01)
                return _resident()

            start = await arrive(WARM_UPS)
            return {"idle": await arrive(LINKS) - start}


def _to(near: Near, address: str) -> Near:
    near.network.remember(peer_of_address(address), [address])
    return Near(near.host, near.network, near.answered, address)


def _resident() -> float:
    gc.collect()
    return used(os.getpid()).memory_mb


if __name__ == "__main__":
    configure_logging("error", "text")
    way = {"dialled": dialled, "accepted": accepted}[sys.argv[1]]
    print(json.dumps(trio.run(way, Path(sys.argv[2]))))
