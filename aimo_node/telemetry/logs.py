"""Structured logs on stderr: one set-up for our own events and for what libraries log."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal, TextIO, TypeAlias

import structlog

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]

HIDDEN: Final = "***"

FOREIGN_RECORDS_MAX: Final = 50
"""Records taken from each library per `FOREIGN_WINDOW_SECONDS`: a stranger who makes a library
log must not be able to fill the disk."""

FOREIGN_WINDOW_SECONDS: Final = 10.0

FOREIGN_LEVELS: Final = {"libp2p": logging.ERROR, "multiaddr": logging.ERROR}
"""Libraries that log ordinary life as warnings; everybody else is heard from warning on."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SECRET_KEYS: Final = frozenset(
    {"secret", "api_key", "authorization", "join", "mesh_secret", "password", "private_key"}
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_Event: TypeAlias = MutableMapping[str, Any]
_Processor: TypeAlias = Callable[[Any, str, _Event], Any]


def configure_logging(
    level: LogLevel, log_format: LogFormat, *, stream: TextIO | None = None
) -> None:
    """Send all logs of the process to `stream` (stderr). Call it once, before the node starts.

    Args:
        level: least important of our own events that is written. Libraries are written from
            warning on, noisy ones from error on, at `debug` one level more.
        log_format: one line of text or one JSON object per event.
    """
    target = QuietStream(stream or sys.stderr)
    processors: list[_Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
        structlog.processors.format_exc_info,
        *_renderers(log_format, colors=target.isatty()),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=target),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    _take_foreign_logs(_LEVELS[level])


def _renderers(log_format: LogFormat, *, colors: bool) -> list[_Processor]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer(ensure_ascii=False)]
    # A plain traceback: the pretty one shows local variables, and those hold prompts.
    plain = structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(
        colors=colors, pad_event_to=28, exception_formatter=plain
    )
    return [escape_control, console]


def hide_secrets(_logger: object, _method: str, event: _Event) -> _Event:
    """Replace values whose key says that they are secret: the last line of defence."""
    for key in _SECRET_KEYS & event.keys():
        event[key] = HIDDEN
    return event


def escape_control(_logger: object, _method: str, event: _Event) -> _Event:
    """Write control characters as escapes, so that a peer cannot drive the owner's terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", value)
    return event


class QuietStream:
    """A text stream whose reader may leave: what cannot be written is dropped.

    Without it `aimo edge 2>&1 | head` would raise BrokenPipeError in whichever task logs next.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        """Flush, or not."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def isatty(self) -> bool:
        """Whether a terminal is at the other end."""
        return self._stream.isatty()


class ForeignHandler(logging.Handler):
    """Brings what libraries log into our own events, few enough to be read.

    Args:
        level: of our own logs; at `logging.DEBUG` libraries are heard one level deeper.
        now: a clock in seconds.
    """

    def __init__(self, level: int, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._depth = 10 if level <= logging.DEBUG else 0
        self._level = level
        self._now = now
        self._window_start = now()
        self._counts: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of a library, unless it is unimportant or one of too many."""
        library = record.name.partition(".")[0]
        least = max(FOREIGN_LEVELS.get(library, logging.WARNING) - self._depth, self._level)
        if record.levelno < least or not self._has_room(library):
            return
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        log = structlog.get_logger()
        log.log(
            record.levelno,
            "library.logged",
            library=record.name,
            text=text,
            exc_info=record.exc_info,
        )

    def _has_room(self, library: str) -> bool:
        now = self._now()
        if now - self._window_start >= FOREIGN_WINDOW_SECONDS:
            for name, count in self._counts.items():
                if count > FOREIGN_RECORDS_MAX:
                    dropped = count - FOREIGN_RECORDS_MAX
                    structlog.get_logger().warning("library.muted", library=name, dropped=dropped)
            self._window_start = now
            self._counts.clear()
        count = self._counts[library] = self._counts.get(library, 0) + 1
        return count <= FOREIGN_RECORDS_MAX


def _take_foreign_logs(level: int) -> None:
    handler = ForeignHandler(level)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if level <= logging.DEBUG else logging.WARNING)
    # libp2p takes its own logger off the tree when it is imported, early or late; its records
    # then go to the handler of last resort, which would print them as they are.
    logging.lastResort = handler
    logging.captureWarnings(capture=True)
    # A failing handler must not print the record's values to stderr.
    logging.raiseExceptions = False
