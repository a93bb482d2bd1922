"""Counting prompts of requests that ended before their engine said how long they were."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from aimo_node.dispatch.hosting import HostedEngine
from aimo_node.dispatch.metering import Bill
from aimo_node.errors import CodedError
from aimo_node.ports.engine import EngineRequest

log = structlog.get_logger()

COUNT_SECONDS: Final = 5.0
COUNTS_MAX: Final = 32
"""Prompts that are counted at a time: the engine has requests to answer. Of more that are cancelled
at the same moment only the answers are counted."""


class PromptCounter:
    """Asks engines afterwards, and adds what they say to the bill."""

    def __init__(self) -> None:
        self._running = 0

    def start(
        self, nursery: trio.Nursery, engine: HostedEngine, request: EngineRequest, bill: Bill
    ) -> None:
        """Begin; nobody waits for the end."""
        if self._running < COUNTS_MAX:
            self._running += 1
            nursery.start_soon(self._count, engine, request, bill)

    async def _count(self, engine: HostedEngine, request: EngineRequest, bill: Bill) -> None:
        try:
            with trio.move_on_after(COUNT_SECONDS):
                bill.add_prompt(await engine.count_tokens(request))
        except CodedError as error:
            log.debug("prompt.not_counted", request=request.request_id.hex(), reason=str(error))
        except Exception:  # the root of a task; an engine may be somebody else's
            log.exception("prompt.not_counted", request=request.request_id.hex())
        finally:
            self._running -= 1
