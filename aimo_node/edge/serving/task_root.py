"""What becomes of an exception at the root of a task: logged when it is a failure, passed on when
it must travel."""

from __future__ import annotations

import structlog

log = structlog.get_logger(__name__)


def report_failure(error: BaseException, event: str, **fields: object) -> None:
    """Logs `event` with the traceback of what is a failure in `error`; the rest is raised again.

    Raises:
        BaseException: the part of `error` that is cancellation or interruption.
    """
    if isinstance(error, Exception):
        log.error(event, exc_info=error, **fields)
        return
    if not isinstance(error, BaseExceptionGroup):
        raise error
    failures, travelling = error.split(Exception)
    if failures is not None:
        log.error(event, exc_info=failures, **fields)
    if travelling is not None:
        raise travelling
